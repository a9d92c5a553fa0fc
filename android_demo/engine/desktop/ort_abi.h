/* What the shim calls of ONNX Runtime's C API, and where it is.
 *
 * The shared library of the Python wheel comes without a header. Its C API is a table of functions that only
 * grows at its end, so the place of a function is a fact of the binary interface; the names are those of the
 * documentation (onnxruntime.ai/docs/api/c/struct_ort_api.html).
 */
#ifndef EDGE_GEMMA_ORT_ABI_H
#define EDGE_GEMMA_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_TABLE_VERSION 1 /* all of the functions below were there in the first version */

typedef struct {
  void *const *(*get_api)(uint32_t version); /* the table; NULL where the version is not known */
  const char *(*get_version_string)(void);
} OrtApiBase;

typedef const OrtApiBase *(*GetApiBase)(void);

/* Places in the table. */
enum {
  GET_ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  DISABLE_TELEMETRY_EVENTS = 6,
  CREATE_SESSION = 7,
  RUN = 9,
  CREATE_SESSION_OPTIONS = 10,
  DISABLE_MEM_PATTERN = 17,
  SET_SESSION_LOG_SEVERITY_LEVEL = 22,
  SET_INTRA_OP_NUM_THREADS = 24,
  SET_INTER_OP_NUM_THREADS = 25,
  CREATE_TENSOR_WITH_DATA = 49,
  CREATE_CPU_MEMORY_INFO = 69,
  RELEASE_STATUS = 93,
  RELEASE_MEMORY_INFO = 94,
  RELEASE_SESSION = 95,
  RELEASE_VALUE = 96,
  RELEASE_SESSION_OPTIONS = 100,
};

/* Their types. What they make is opaque; a status is NULL where all went well. */
typedef void *Status;
typedef const char *(*GetErrorMessage)(Status status);
typedef Status (*CreateEnv)(int log_level, const char *log_id, void **env);
typedef Status (*DisableTelemetryEvents)(void *env);
typedef Status (*CreateSession)(void *env, const char *path, void *options, void **session);
typedef Status (*Run)(void *session, const void *run_options, const char *const *input_names, const void *const *inputs,
                      size_t input_count, const char *const *output_names, size_t output_count, void **outputs);
typedef Status (*CreateSessionOptions)(void **options);
typedef Status (*DisableMemPattern)(void *options);
typedef Status (*SetOption)(void *options, int value);
typedef Status (*CreateTensorWithData)(const void *memory_info, void *data, size_t bytes, const int64_t *shape,
                                       size_t dimensions, int type, void **value);
typedef Status (*CreateCpuMemoryInfo)(int allocator, int memory_type, void **memory_info);
typedef void (*Release)(void *object);

enum { DEVICE_ALLOCATOR = 0, MEMORY_DEFAULT = 0, LOG_ERROR = 3 };

#endif
