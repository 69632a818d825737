#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>

#include "bindings/bind.h"
#include "distributed/peer_copies.h"

namespace py = pybind11;
using py::literals::operator""_a;

namespace runtime::bindings {
namespace {

std::unique_ptr<PeerBuffers> Make(Communicator& group, std::size_t num_bytes) {
  py::gil_scoped_release release;
  return PeerBuffers::Make(group, num_bytes);
}

StreamHandle Stream(std::uintptr_t stream) { return reinterpret_cast<StreamHandle>(stream); }

std::unique_ptr<PeerCopies> MakeCopies(Communicator& group, std::size_t num_words,
                                       std::size_t num_bytes) {
  py::gil_scoped_release release;
  return PeerCopies::Make(group, num_words, num_bytes);
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
  py::class_<PeerCopies>(
      m, "PeerCopies",
      "num_bytes of device memory on every rank that the others copy into by copy engine, and "
      "num_words int32, -1 at first, by which streams of two devices wait for each other; a stream "
      "that waits goes on when the group fails. Made as PeerBuffers are. Methods queue work on "
      "`stream`, a handle.")
      .def(py::init(&MakeCopies), "communicator"_a, "num_words"_a, "num_bytes"_a)
      .def_property_readonly("address", &PeerCopies::own_bytes, "Of this rank's bytes.")
      .def(
          "copy",
          [](PeerCopies& self, int rank, std::size_t offset, CudaAddress source,
             std::size_t num_bytes,
             std::uintptr_t stream) { self.Copy(rank, offset, source, num_bytes, Stream(stream)); },
          "rank"_a, "offset"_a, "source"_a, "num_bytes"_a, "stream"_a,
          "num_bytes at the address `source` of this device, to `offset` of the bytes of `rank`.")
      .def(
          "write",
          [](PeerCopies& self, int rank, std::size_t word, std::int32_t value,
             std::uintptr_t stream) { self.Write(rank, word, value, Stream(stream)); },
          "rank"_a, "word"_a, "value"_a, "stream"_a,
          "The word of `rank`, once what the stream did before can be seen there.")
      .def(
          "wait",
          [](PeerCopies& self, std::size_t word, std::int32_t value, std::uintptr_t stream) {
            self.Wait(word, value, Stream(stream));
          },
          "word"_a, "value"_a, "stream"_a, "Until this rank's word has reached `value`.");
}

}  // namespace runtime::bindings
