/* JNI between io.github.edgegemma.desktop.NativeOnnxRuntime and ONNX Runtime's shared library. */

#include <dlfcn.h>
#include <jni.h>
#include <stdio.h>
#include <stdlib.h>

#include "ort_abi.h"

#define JAVA(name) Java_io_github_edgegemma_desktop_NativeOnnxRuntime_##name
#define CALL(type, place) ((type)table[place])

static const OrtApiBase *base;
static void *const *table;
static void *environment;
static void *cpu;

/* Names and values of the inputs or outputs of one run. */
typedef struct {
  jsize count;
  const char **names;
  void **values;
} Bindings;

static void throw_onnx(JNIEnv *env, const char *message) {
  jclass kind = (*env)->FindClass(env, "io/github/edgegemma/engine/OnnxException");
  if (kind) {
    (*env)->ThrowNew(env, kind, message);
  }
}

/* Whether a call went well; throws if it did not. */
static int succeeded(JNIEnv *env, Status status) {
  if (!status) {
    return 1;
  }
  throw_onnx(env, CALL(GetErrorMessage, GET_ERROR_MESSAGE)(status));
  CALL(Release, RELEASE_STATUS)(status);
  return 0;
}

JNIEXPORT void JNICALL JAVA(initialize)(JNIEnv *env, jclass unused, jstring library) {
  (void)unused;
  const char *path = (*env)->GetStringUTFChars(env, library, NULL);
  if (!path) {
    return;
  }
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  (*env)->ReleaseStringUTFChars(env, library, path);
  GetApiBase get_base = handle ? (GetApiBase)dlsym(handle, "OrtGetApiBase") : NULL;
  if (!get_base) {
    throw_onnx(env, dlerror());
    return;
  }
  base = get_base();
  table = base->get_api(ORT_TABLE_VERSION);
  if (!table) {
    throw_onnx(env, "this ONNX Runtime has no C API of the version asked for");
    return;
  }
  if (succeeded(env, CALL(CreateEnv, CREATE_ENV)(LOG_ERROR, "edge-gemma", &environment)) &&
      succeeded(env, CALL(DisableTelemetryEvents, DISABLE_TELEMETRY_EVENTS)(environment))) {
    succeeded(env, CALL(CreateCpuMemoryInfo, CREATE_CPU_MEMORY_INFO)(DEVICE_ALLOCATOR, MEMORY_DEFAULT, &cpu));
  }
}

JNIEXPORT jstring JNICALL JAVA(libraryVersion)(JNIEnv *env, jclass unused) {
  (void)unused;
  return (*env)->NewStringUTF(env, base->get_version_string());
}

JNIEXPORT jlong JNICALL JAVA(createSession)(JNIEnv *env, jclass unused, jstring model, jint threads) {
  (void)unused;
  void *options = NULL, *session = NULL;
  if (!succeeded(env, CALL(CreateSessionOptions, CREATE_SESSION_OPTIONS)(&options))) {
    return 0;
  }
  const char *path = (*env)->GetStringUTFChars(env, model, NULL);
  if (path && succeeded(env, CALL(DisableMemPattern, DISABLE_MEM_PATTERN)(options)) &&
      succeeded(env, CALL(SetOption, SET_SESSION_LOG_SEVERITY_LEVEL)(options, LOG_ERROR)) &&
      succeeded(env, CALL(SetOption, SET_INTRA_OP_NUM_THREADS)(options, threads)) &&
      succeeded(env, CALL(SetOption, SET_INTER_OP_NUM_THREADS)(options, 1))) {
    succeeded(env, CALL(CreateSession, CREATE_SESSION)(environment, path, options, &session));
  }
  if (path) {
    (*env)->ReleaseStringUTFChars(env, model, path);
  }
  CALL(Release, RELEASE_SESSION_OPTIONS)(options);
  return (jlong)(intptr_t)session;
}

JNIEXPORT void JNICALL JAVA(releaseSession)(JNIEnv *env, jclass unused, jlong session) {
  (void)env, (void)unused;
  CALL(Release, RELEASE_SESSION)((void *)(intptr_t)session);
}

/* A value over the memory of a direct buffer; NULL if that threw. */
static void *create_value(JNIEnv *env, jobject buffer, jint type, jlongArray shape) {
  void *value = NULL;
  void *data = (*env)->GetDirectBufferAddress(env, buffer);
  jlong bytes = (*env)->GetDirectBufferCapacity(env, buffer);
  if (!data || bytes < 0) {
    throw_onnx(env, "the buffer of a tensor is not direct");
    return NULL;
  }
  jlong *dimensions = (*env)->GetLongArrayElements(env, shape, NULL);
  if (dimensions) {
    size_t rank = (size_t)(*env)->GetArrayLength(env, shape);
    succeeded(env, CALL(CreateTensorWithData, CREATE_TENSOR_WITH_DATA)(cpu, data, (size_t)bytes, (const int64_t *)dimensions,
                                                                      rank, type, &value));
    (*env)->ReleaseLongArrayElements(env, shape, dimensions, JNI_ABORT);
  }
  return value;
}

static void release_bindings(JNIEnv *env, Bindings *bound, jobjectArray names) {
  for (jsize i = 0; i < bound->count; i++) {
    if (bound->names && bound->names[i]) {
      jstring name = (*env)->GetObjectArrayElement(env, names, i);
      (*env)->ReleaseStringUTFChars(env, name, bound->names[i]);
      (*env)->DeleteLocalRef(env, name);
    }
    if (bound->values && bound->values[i]) {
      CALL(Release, RELEASE_VALUE)(bound->values[i]);
    }
  }
  free(bound->names);
  free(bound->values);
}

/* Whether all names and tensors were taken over; throws if not. Release them in either case. */
static int bind(JNIEnv *env, Bindings *bound, jobjectArray names, jobjectArray buffers, jintArray types,
                jobjectArray shapes) {
  bound->count = (*env)->GetArrayLength(env, names);
  bound->names = calloc((size_t)bound->count + 1, sizeof *bound->names);
  bound->values = calloc((size_t)bound->count + 1, sizeof *bound->values);
  if (!bound->names || !bound->values) {
    throw_onnx(env, "there is no memory left to run a graph");
    return 0;
  }
  for (jsize i = 0; i < bound->count; i++) {
    jstring name = (*env)->GetObjectArrayElement(env, names, i);
    jobject buffer = (*env)->GetObjectArrayElement(env, buffers, i);
    jlongArray shape = (*env)->GetObjectArrayElement(env, shapes, i);
    jint type;
    (*env)->GetIntArrayRegion(env, types, i, 1, &type);
    bound->names[i] = (*env)->GetStringUTFChars(env, name, NULL);
    if (bound->names[i]) {
      bound->values[i] = create_value(env, buffer, type, shape);
    }
    (*env)->DeleteLocalRef(env, name);
    (*env)->DeleteLocalRef(env, buffer);
    (*env)->DeleteLocalRef(env, shape);
    if (!bound->values[i]) {
      return 0;
    }
  }
  return 1;
}

JNIEXPORT void JNICALL JAVA(runSession)(JNIEnv *env, jclass unused, jlong session, jobjectArray input_names,
                                        jobjectArray inputs, jintArray input_types, jobjectArray input_shapes,
                                        jobjectArray output_names, jobjectArray outputs, jintArray output_types,
                                        jobjectArray output_shapes) {
  (void)unused;
  Bindings in = {0, NULL, NULL}, out = {0, NULL, NULL};
  if (bind(env, &in, input_names, inputs, input_types, input_shapes) &&
      bind(env, &out, output_names, outputs, output_types, output_shapes)) {
    succeeded(env, CALL(Run, RUN)((void *)(intptr_t)session, NULL, in.names, (const void *const *)in.values,
                                  (size_t)in.count, out.names, (size_t)out.count, out.values));
  }
  release_bindings(env, &in, input_names);
  release_bindings(env, &out, output_names);
}
