#include "distributed/peer_buffers.h"

#include <pybind11/stl.h>

#include <cstddef>

#include "bindings/bind.h"

namespace py = pybind11;
using py::literals::operator""_a;

namespace runtime::bindings {
namespace {

std::unique_ptr<PeerBuffers> Make(Communicator& group, std::size_t num_bytes) {
  py::gil_scoped_release release;
  return PeerBuffers::Make(group, num_bytes);
}

}  // namespace

void BindPeerBuffers(py::module_& m) {
  py::class_<PeerBuffers>(
      m, "PeerBuffers",
      "num_bytes of device memory on every rank, all 0xff, that all ranks can read and write; of "
      "the current CUDA device. A collective call on the host. Raises ConfigError, on every rank "
      "the same, where a rank has no such memory or cannot reach another's.")
      .def(py::init(&Make), "communicator"_a, "num_bytes"_a)
      .def_property_readonly("addresses", &PeerBuffers::addresses,
                             "Of each rank's memory, as this device knows it.")
      .def_property_readonly("abort_word", &PeerBuffers::abort_word,
                             "Address of an int32 that is 0 until the group has failed.");
}

}  // namespace runtime::bindings
