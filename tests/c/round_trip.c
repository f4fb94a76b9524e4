/* Encodes and decodes images with an exported SavedModel through TensorFlow's C API, without Python.
 *
 * TF_LoadSessionFromSavedModel is the C++ loader that TensorFlow Serving uses; it restores the variables and runs the
 * graph in another way than tf.saved_model.load does.
 *
 * Usage:
 *   round_trip SAVED_MODEL IMAGES OUT ENCODE_IMAGES ENCODE_V DECODE_V DECODE_IMAGES [ENCODE_Z DECODE_Z]
 *
 *   SAVED_MODEL  the folder with saved_model.pb; its graph with the tag "serve" is taken
 *   IMAGES       file of raw uint8 [batch, height, width, channels]; the batch follows from the file's size
 *   OUT          existing folder for the raw files v, images and z: float32 (z, v) in this machine's byte order, uint8
 *   ENCODE_...   names of tensors in the graph, as `saved_model_cli show --dir SAVED_MODEL --all` prints them for the
 *   DECODE_...   signatures encode and decode; those of z only for a model that has one
 *
 *   For example:
 *   round_trip savedmodel/1 images.raw out encode_images:0 StatefulPartitionedCall_1:0 decode_v:0 \
 *       StatefulPartitionedCall:0 StatefulPartitionedCall_1:1 decode_z:0
 *
 * Prints one line with the number of subpixels that differ. Exit status: 0 if none differ, 1 if some do, 2 after an
 * error, which is one line on stderr that starts with "round_trip: error: ". TensorFlow's own log goes to stderr as
 * well; TF_CPP_MIN_LOG_LEVEL=3 in the environment leaves only a few lines of it.
 *
 * To build, with TF the folder that tf.sysconfig.get_lib() gives:
 *   cc -std=c11 -Wall -Wextra -o round_trip round_trip.c -isystem $TF/include \
 *       $TF/libtensorflow_cc.so.2 $TF/libtensorflow_framework.so.2 -Wl,-rpath,$TF
 */

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { EXIT_DIFFERENT = 1, EXIT_ERROR = 2, IMAGE_RANK = 4 };

/* Prints one line on stderr and ends the program, which frees whatever it holds. */
static _Noreturn void fail(const char* format, ...) {
  va_list arguments;
  fputs("round_trip: error: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(EXIT_ERROR);
}

/* Returns a copy of a string, for the caller to free; strdup is not in C11. */
static char* copy_of(const char* text) {
  const size_t size = strlen(text) + 1;
  char* copy = malloc(size);
  if (copy == NULL) fail("out of memory");
  return memcpy(copy, text, size);
}

/* Ends the program if TensorFlow failed. Its messages may have several lines; they become one. */
static void check(const TF_Status* status, const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  char* message = copy_of(TF_Message(status));
  for (char* c = message; *c != '\0'; ++c) {
    if (isspace((unsigned char)*c)) *c = ' ';
  }
  fail("%s: %s", what, message);
}

/* Returns the bytes of a file, for the caller to free. */
static uint8_t* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) fail("cannot open %s: %s", path, strerror(errno));
  size_t capacity = 1 << 16;
  uint8_t* bytes = NULL;
  *size = 0;
  do {
    capacity *= 2;
    bytes = realloc(bytes, capacity);
    if (bytes == NULL) fail("cannot read %s: out of memory", path);
    *size += fread(bytes + *size, 1, capacity - *size, file);
  } while (*size == capacity);
  if (ferror(file)) fail("cannot read %s: %s", path, strerror(errno));
  fclose(file);
  return bytes;
}

static void write_tensor(const char* folder, const char* name, const TF_Tensor* tensor) {
  const size_t length = strlen(folder) + strlen(name) + 2;
  char* path = malloc(length);
  if (path == NULL) fail("cannot write %s: out of memory", name);
  snprintf(path, length, "%s/%s", folder, name);
  FILE* file = fopen(path, "wb");
  if (file == NULL) fail("cannot open %s: %s", path, strerror(errno));
  const size_t size = TF_TensorByteSize(tensor);
  const int complete = fwrite(TF_TensorData(tensor), 1, size, file) == size;
  /* A full disk may show only when the last bytes are flushed. */
  if (fclose(file) != 0 || !complete) fail("cannot write %s: %s", path, strerror(errno));
  free(path);
}

/* Returns the tensor of that name, such as "encode_images:0", in the graph. */
static TF_Output find(TF_Graph* graph, const char* name, TF_DataType type) {
  const char* colon = strrchr(name, ':');
  char* end = NULL;
  const long index = colon == NULL ? -1 : strtol(colon + 1, &end, 10);
  if (index < 0 || end == colon + 1 || *end != '\0') fail("%s is no name of a tensor, as op:0", name);
  char* operation = copy_of(name);
  operation[colon - name] = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, operation), (int)index};
  free(operation);
  /* TF_OperationOutputType does not check the index itself. */
  if (output.oper == NULL || index >= TF_OperationNumOutputs(output.oper)) fail("the graph has no tensor %s", name);
  if (TF_OperationOutputType(output) != type) {
    fail("%s has data type %d, not %d", name, (int)TF_OperationOutputType(output), (int)type);
  }
  return output;
}

/* Returns the images in the file as a tensor of the shape that the graph's input has. */
static TF_Tensor* read_images(const char* path, TF_Graph* graph, TF_Output input, const char* name) {
  int64_t shape[IMAGE_RANK];
  TF_Status* status = TF_NewStatus();
  const int rank = TF_GraphGetTensorNumDims(graph, input, status);
  check(status, name);
  if (rank != IMAGE_RANK) fail("%s has %d dimensions, not %d", name, rank, IMAGE_RANK);
  TF_GraphGetTensorShape(graph, input, shape, rank, status);
  check(status, name);
  TF_DeleteStatus(status);
  size_t image_size = 1;
  for (int axis = 1; axis < rank; ++axis) {
    if (shape[axis] <= 0) fail("the size of the images is not fixed in %s", name);
    image_size *= (size_t)shape[axis];
  }

  size_t size;
  uint8_t* bytes = read_file(path, &size);
  if (size == 0 || size % image_size != 0) {
    fail("%s has %zu bytes, which is no multiple of the %zu of an image", path, size, image_size);
  }
  shape[0] = (int64_t)(size / image_size);
  TF_Tensor* images = TF_AllocateTensor(TF_UINT8, shape, rank, size);
  if (images == NULL) fail("cannot hold %s: out of memory", path);
  memcpy(TF_TensorData(images), bytes, size);
  free(bytes);
  return images;
}

/* Runs the graph; the caller deletes the tensors in `outputs`. */
static void run(TF_Session* session, const char* what, const TF_Output* feeds, TF_Tensor* const* inputs, int feed_count,
                const TF_Output* fetches, TF_Tensor** outputs, int fetch_count) {
  TF_Status* status = TF_NewStatus();
  TF_SessionRun(session, NULL, feeds, inputs, feed_count, fetches, outputs, fetch_count, NULL, 0, NULL, status);
  check(status, what);
  TF_DeleteStatus(status);
}

/* Prints how many subpixels differ and returns their number. */
static size_t compare(const TF_Tensor* images, const TF_Tensor* decoded) {
  int same_shape = TF_NumDims(decoded) == IMAGE_RANK;
  for (int axis = 0; same_shape && axis < IMAGE_RANK; ++axis) {
    same_shape = TF_Dim(decoded, axis) == TF_Dim(images, axis);
  }
  if (!same_shape) fail("the decoded images have another shape than the images");
  const uint8_t* a = TF_TensorData(images);
  const uint8_t* b = TF_TensorData(decoded);
  const size_t total = TF_TensorByteSize(images);
  size_t different = 0;
  for (size_t i = 0; i < total; ++i) different += a[i] != b[i];
  printf("%lld images: %zu of %zu subpixels differ\n", (long long)TF_Dim(images, 0), different, total);
  return different;
}

int main(int argc, char** argv) {
  if (argc != 8 && argc != 10) {
    fail("usage: round_trip SAVED_MODEL IMAGES OUT ENCODE_IMAGES ENCODE_V DECODE_V DECODE_IMAGES [ENCODE_Z DECODE_Z]");
  }
  const char* const saved_model = argv[1];
  const char* const out = argv[3];
  const int codes = argc == 10 ? 2 : 1; /* v alone, or v and z */

  TF_Status* status = TF_NewStatus();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Graph* graph = TF_NewGraph();
  const char* const tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, saved_model, tags, 1, graph, NULL, status);
  check(status, "cannot load the SavedModel");

  const TF_Output encode_in = find(graph, argv[4], TF_UINT8);
  const TF_Output decode_out = find(graph, argv[7], TF_UINT8);
  TF_Output encode_out[2] = {find(graph, argv[5], TF_FLOAT)};
  TF_Output decode_in[2] = {find(graph, argv[6], TF_FLOAT)};
  if (codes == 2) {
    encode_out[1] = find(graph, argv[8], TF_FLOAT);
    decode_in[1] = find(graph, argv[9], TF_FLOAT);
  }

  TF_Tensor* images = read_images(argv[2], graph, encode_in, argv[4]);
  TF_Tensor* code[2] = {NULL, NULL};
  TF_Tensor* decoded = NULL;
  run(session, "cannot encode", &encode_in, &images, 1, encode_out, code, codes);
  run(session, "cannot decode", decode_in, code, codes, &decode_out, &decoded, 1);

  write_tensor(out, "v", code[0]);
  if (codes == 2) write_tensor(out, "z", code[1]);
  write_tensor(out, "images", decoded);
  const size_t different = compare(images, decoded);

  TF_DeleteTensor(images);
  TF_DeleteTensor(decoded);
  for (int i = 0; i < codes; ++i) TF_DeleteTensor(code[i]);
  TF_CloseSession(session, status);
  check(status, "cannot close the session");
  TF_DeleteSession(session, status);
  check(status, "cannot delete the session");
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  return different == 0 ? EXIT_SUCCESS : EXIT_DIFFERENT;
}
