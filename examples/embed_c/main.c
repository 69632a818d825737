/* A model inside a C program: streams one answer of the built-in model.
 *   embed_c [PROMPT] */
#include <stdio.h>

#include "runtime/runtime_c.h"

static int fail(runtime_error* error) {
  fprintf(stderr, "%s: %s\n%s\n", error->code, error->message, error->hint);
  runtime_error_free(error);
  return 1;
}

int main(int argc, char** argv) {
  const runtime_argument arguments[] = {{"max_num_seqs", RUNTIME_INTEGER, {.integer = 8}}};
  const runtime_config config = {.arguments = arguments, .num_arguments = 1};
  runtime_error* error = NULL;
  runtime_engine* engine = runtime_engine_create(&config, &error);
  if (engine == NULL) return fail(error);

  runtime_request request;
  runtime_request_init(&request);
  request.prompt.text = argc > 1 ? argv[1] : "12+35=";
  request.temperature = 0;
  printf("%s", request.prompt.text);

  const int64_t id = runtime_submit(engine, &request, NULL, &error);
  runtime_poll found = id < 0 ? RUNTIME_FAILED : RUNTIME_CHUNK;
  while (found == RUNTIME_CHUNK) {
    runtime_chunk* chunk = NULL;
    found = runtime_next(engine, id, -1, &chunk, &error);
    if (found == RUNTIME_CHUNK) printf("%s", chunk->text);
    runtime_chunk_free(chunk);
  }
  printf("\n");
  runtime_engine_destroy(engine);
  return found == RUNTIME_FAILED ? fail(error) : 0;
}
