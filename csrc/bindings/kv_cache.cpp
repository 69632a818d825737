#include "bindings/bind.h"
#include "runtime/block_allocator.h"

namespace py = pybind11;

namespace runtime::bindings {

void BindKvCache(py::module_& m) {
  py::class_<BlockAllocator>(m, "BlockAllocator",
                             "Hands out KV cache blocks, ids 1..num_blocks, to the Scheduler that "
                             "is built on it. Holds no tensors.")
      .def(py::init<std::int32_t>(), py::arg("num_blocks"))
      .def_property_readonly("num_blocks", &BlockAllocator::num_blocks)
      .def_property_readonly("num_free", &BlockAllocator::num_free,
                             "Blocks that nobody owns, cached ones included.");
}

}  // namespace runtime::bindings
