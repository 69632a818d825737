#include "bench/commands.h"

int main(int argc, char** argv) {
  return runtime::bench::Main({argv + (argc > 0 ? 1 : 0), argv + argc});
}
