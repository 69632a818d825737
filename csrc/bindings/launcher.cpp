#include "runtime/launcher.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <utility>

#include "bindings/bind.h"
#include "runtime/rank_link.h"
#include "runtime/step_plan.h"

namespace py = pybind11;

namespace runtime::bindings {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename Side>
std::vector<py::bytes> Exchange(Side& self, const py::bytes& bytes) {
  const std::string given = bytes;
  std::vector<std::string> parts;
  {
    const py::gil_scoped_release released;
    parts = self.Exchange(given);
  }
  return {parts.begin(), parts.end()};
}

std::unique_ptr<Launcher> Launch(std::vector<std::string> argv, int num_ranks,
                                 const std::map<std::string, std::string>& environment,
                                 double start_silence_s) {
  LaunchOptions options;
  options.argv = std::move(argv);
  options.num_ranks = num_ranks;
  options.start_silence_s = start_silence_s;
  for (const auto& [name, value] : environment) options.environment.push_back(name + "=" + value);
  return std::make_unique<Launcher>(std::move(options));
}

void Publish(Launcher& self, std::uintptr_t address, double timeout_s) {
  const auto* words = reinterpret_cast<const std::int32_t*>(address);
  const std::span plan(words, static_cast<std::size_t>(words[step_plan::kHeaderNumWords]));
  if (self.HasRoom(plan)) return self.Publish(plan, timeout_s);  // a copy: keeps the GIL
  const py::gil_scoped_release released;
  self.Publish(plan, timeout_s);
}

void BindFailure(py::module_& m) {
  py::class_<RankFailure>(m, "RankFailure",
                          "Why a group of ranks cannot go on; `what` is the whole sentence.")
      .def(py::init<int, std::string, std::string, std::string, std::string, std::string>(),
           py::arg("rank"), py::arg("what"), py::arg("type") = "", py::arg("cause") = "",
           py::arg("hint") = "", py::arg("phase") = "")
      .def_readonly("rank", &RankFailure::rank)
      .def_readonly("what", &RankFailure::what)
      .def_readonly("type", &RankFailure::type, "Type of the rank's exception, \"\": none.")
      .def_readonly("cause", &RankFailure::cause)
      .def_readonly("hint", &RankFailure::hint)
      .def_readonly("phase", &RankFailure::phase);
  py::class_<RankState>(m, "RankState", "One rank as rank 0 sees it.")
      .def_readonly("rank", &RankState::rank)
      .def_readonly("pid", &RankState::pid)
      .def_readonly("phase", &RankState::phase)
      .def_readonly("begun_step", &RankState::begun_step, "-1: none.")
      .def_readonly("done_step", &RankState::done_step, "-1: none.")
      .def_readonly("num_calls", &RankState::num_calls, "Of collectives, as it has shown.")
      .def_readonly("silent_s", &RankState::silent_s, "Seconds since the process last ran.");
}

}  // namespace

void BindLauncher(py::module_& m) {
  BindFailure(m);
  py::class_<Launcher>(m, "Launcher",
                       "Starts the processes of ranks 1.. on this host, watches them and gives "
                       "them step plans. Any thread may call it; one thread publishes.")
      .def(py::init(&Launch), py::arg("argv"), py::arg("num_ranks"), py::kw_only(),
           py::arg("environment") = std::map<std::string, std::string>{},
           py::arg("start_silence_s") = 60.0, "Raises ConfigError, CapacityError.")
      .def(
          "send",
          [](Launcher& self, int rank, const py::bytes& bytes) {
            const std::string given = bytes;
            const py::gil_scoped_release released;
            self.Send(rank, given);
          },
          py::arg("rank"), py::arg("data"),
          "Bytes for one rank's RankLink.receive. Raises EngineDeadError.")
      .def("exchange", &Exchange<Launcher>, py::arg("data"),
           "Every rank's bytes, in rank order, once all have given theirs. Raises "
           "EngineDeadError.")
      .def("publish", &Publish, py::arg("address"), py::arg("timeout_s"),
           "Gives the StepPlan at that address to every rank. Raises EngineDeadError.")
      .def_property_readonly("failure", &Launcher::failure, "The first failure, or None.")
      .def("wait_for_failure", &Launcher::WaitForFailure, py::arg("timeout_s"), NoGil(),
           "The failure; None after timeout_s or once the group is being stopped.")
      .def("fail", &Launcher::Fail, py::arg("failure"), NoGil(),
           "Rank 0's own finding; counts if it is the first. All ranks are killed.")
      .def_property_readonly("ranks", &Launcher::ranks, "States of ranks 1..")
      .def("stop", &Launcher::Stop, py::arg("grace_s"), NoGil(),
           "Lets the ranks end, kills those that have not after grace_s. Idempotent.");
  py::class_<RankLink>(m, "RankLink",
                       "The other end of a Launcher, in the process of a rank. Ends the process "
                       "when rank 0 is gone.")
      .def(py::init<>())
      .def_property_readonly("rank", &RankLink::rank)
      .def_property_readonly("num_ranks", &RankLink::num_ranks)
      .def(
          "receive",
          [](RankLink& self) {
            std::string bytes;
            {
              const py::gil_scoped_release released;
              bytes = self.Receive();
            }
            return py::bytes(bytes);
          },
          "The next bytes that rank 0 sent.")
      .def("set_phase", &RankLink::SetPhase, py::arg("phase"),
           "What this rank does now; \"\": it runs steps.")
      .def("exchange", &Exchange<RankLink>, py::arg("data"))
      .def("fail", &RankLink::Fail, py::arg("type"), py::arg("cause"), py::arg("hint"),
           py::arg("is_echo"), "This rank cannot go on; is_echo: because of another one.")
      .def(
          "read_plan",
          [](RankLink& self, const py::buffer& buffer) {
            const py::buffer_info info = buffer.request(/*writable=*/true);
            const auto num_bytes = static_cast<std::size_t>(info.size * info.itemsize);
            const py::gil_scoped_release released;
            return self.ReadPlan({static_cast<std::int32_t*>(info.ptr), num_bytes / 4});
          },
          py::arg("buffer"),
          "Writes the next StepPlan into an aligned, contiguous buffer and returns its step; None: "
          "the group ends. Raises EngineDeadError.")
      .def("finish_step", &RankLink::FinishStep, py::arg("step"), "The step has been run.")
      .def("show_calls", &RankLink::ShowCalls, py::arg("num_calls"),
           "How many collectives this rank has called so far.");
}

}  // namespace runtime::bindings
