/**
 * The part of ONNX Runtime's Java binding that the app calls, as signatures without code: javac needs them where
 * the binding itself cannot be had. They are never put into an APK.
 */
package ai.onnxruntime;
