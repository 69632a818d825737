#include "runtime/communicator.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bind.h"

namespace py = pybind11;
using py::literals::operator""_a;

namespace runtime::bindings {
namespace {

void* Pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

// The GIL is given up where a call waits for other ranks, and kept where it only queues work: to
// get it back can take longer than the call.
template <typename Call>
void Run(Communicator& self, Call call) {
  if (!self.blocks()) return call();
  py::gil_scoped_release release;
  call();
}

std::unique_ptr<Communicator> Make(const py::bytes& unique_id, int rank, int size, double timeout_s,
                                   std::size_t piece_bytes) {
  const CommunicatorOptions options{std::string(unique_id), rank, size, timeout_s, piece_bytes};
  py::gil_scoped_release release;
  return MakeCommunicator(options);
}

// all_reduce, all_gather and reduce_scatter.
template <auto Method>
void Collective(Communicator& self, std::uintptr_t in, std::uintptr_t out, std::size_t count,
                DataType type, std::uintptr_t stream) {
  Run(self, [&] { (self.*Method)(Pointer(in), Pointer(out), count, type, Pointer(stream)); });
}

void Broadcast(Communicator& self, std::uintptr_t data, std::size_t count, DataType type, int root,
               std::uintptr_t stream) {
  Run(self, [&] { self.Broadcast(Pointer(data), count, type, root, Pointer(stream)); });
}

std::vector<py::bytes> Exchange(Communicator& self, const py::bytes& data) {
  const std::string in(data);
  std::string out(in.size() * static_cast<std::size_t>(self.size()), '\0');
  {
    py::gil_scoped_release release;
    self.Exchange(in.data(), out.data(), in.size());
  }
  std::vector<py::bytes> parts;
  for (int rank = 0; rank < self.size(); ++rank) {
    parts.emplace_back(out.data() + in.size() * static_cast<std::size_t>(rank), in.size());
  }
  return parts;
}

}  // namespace

void BindCommunicator(py::module_& m) {
  py::enum_<DataType>(m, "DataType", "Of the elements of a collective.")
      .value("FLOAT32", DataType::kFloat32)
      .value("BFLOAT16", DataType::kBFloat16)
      .value("FLOAT16", DataType::kFloat16)
      .value("INT32", DataType::kInt32);
  m.def(
      "load_nccl",
      [](const std::string& library, const std::vector<std::string>& folders) {
        const NcclInfo info = LoadNccl(library, folders);
        return std::make_pair(info.path, info.version);
      },
      "library"_a = "", "folders"_a = std::vector<std::string>{},
      "Path and version (22809 is 2.28.9) of NCCL; the first call that finds it decides for the "
      "process. Searched in this order: `library`; what is loaded; $RUNTIME_NCCL_LIB; `folders`; "
      "the system. Raises ConfigError with all that was searched.");
  py::class_<Communicator>(
      m, "Communicator",
      "One rank's end of a group of processes of one host. All ranks make the same calls in the "
      "same order, on addresses of contiguous memory: a CPU's with an id for 'shm', a GPU's with "
      "one for 'nccl', whose calls are queued on `stream`. Raises CommunicatorError, once a rank "
      "has failed at every call.")
      .def_static(
          "unique_id",
          [](const std::string& backend) { return py::bytes(MakeUniqueId(BackendNamed(backend))); },
          "backend"_a,
          "Names a group to be, made on rank 0 for 'shm' or 'nccl': a secret of at most 256 bytes.")
      .def(
          py::init(&Make), "unique_id"_a, "rank"_a, "size"_a, py::kw_only(), "timeout_s"_a = 60.0,
          "piece_bytes"_a = CommunicatorOptions{}.piece_bytes,
          "Returns when all ranks have joined; with 'nccl' for the current CUDA device. timeout_s: "
          "how long a rank waits for the others. piece_bytes: of shared memory, longer messages "
          "go in pieces.")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def("all_reduce", &Collective<&Communicator::AllReduce>, "input"_a, "out"_a, "count"_a,
           "dtype"_a, "stream"_a = 0,
           "out[count] = sum of the ranks' input[count]; in place works.")
      .def("all_gather", &Collective<&Communicator::AllGather>, "input"_a, "out"_a, "count"_a,
           "dtype"_a, "stream"_a = 0,
           "out[size * count] = the ranks' input[count], one after the other.")
      .def("reduce_scatter", &Collective<&Communicator::ReduceScatter>, "input"_a, "out"_a,
           "count"_a, "dtype"_a, "stream"_a = 0,
           "out[count] = part `rank` of the sum of the ranks' input[size * count].")
      .def("broadcast", &Broadcast, "data"_a, "count"_a, "dtype"_a, "root"_a = 0, "stream"_a = 0,
           "data[count] = that of `root`.")
      .def("barrier", &Communicator::Barrier, py::call_guard<py::gil_scoped_release>(),
           "Returns when all ranks have come to it; knows nothing of streams.")
      .def("exchange", &Exchange, "data"_a,
           "The ranks' bytes, of one length, in rank order; on the host with either backend.")
      .def("poll", &Communicator::Poll,
           "Raises what has failed since, a rank that died included, without waiting.")
      .def("abort", &Communicator::Abort, "cause"_a,
           "From any thread: ends the group; calls under way raise the cause.");
}

}  // namespace runtime::bindings
