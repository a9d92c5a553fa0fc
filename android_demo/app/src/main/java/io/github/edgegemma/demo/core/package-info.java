/** What the demo does, without Android: a JVM compiles and tests it. */
package io.github.edgegemma.demo.core;
