/** ONNX Runtime's Java binding, as far as the app calls it, which remembers what it was asked. */
package ai.onnxruntime;
