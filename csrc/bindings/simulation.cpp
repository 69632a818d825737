#include "runtime/simulation.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bind.h"
#include "runtime/event_log.h"
#include "scheduler/setting_names.h"

namespace py = pybind11;
using py::literals::operator""_a;

namespace runtime::bindings {
namespace {

using namespace simulation;  // NOLINT: the file binds that namespace

using Trace = py::array_t<SimulatedRequest, py::array::c_style>;

constexpr auto kHeartbeat = std::chrono::milliseconds(200);

// Lets Ctrl-C through, now and then.
Heartbeat CheckSignals() {
  return [last = std::chrono::steady_clock::now()]() mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now - last < kHeartbeat) return;
    last = now;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
}

std::vector<SimulatedRequest> ToRequests(const py::array& array) {
  const auto trace = Trace::ensure(array);
  if (!trace) throw py::error_already_set();
  return {trace.data(), trace.data() + trace.size()};
}

template <typename Config>
SimulationResult RunWorkload(SimulationResult (*run)(const Config&, const Workload&,
                                                     const Heartbeat&),
                             const Config& config, const Workload& workload) {
  const py::gil_scoped_release free;
  return run(config, workload, CheckSignals());
}

template <typename Config>
SimulationResult RunTrace(SimulationResult (*run)(const Config&, std::vector<SimulatedRequest>,
                                                  const Heartbeat&),
                          const Config& config, const py::array& trace) {
  std::vector<SimulatedRequest> requests = ToRequests(trace);
  const py::gil_scoped_release free;
  return run(config, std::move(requests), CheckSignals());
}

// A read-only view, as long as `self` lives.
template <typename Item, auto kMember>
py::array View(const py::object& self) {
  const auto& values = self.cast<const SimulationResult&>().*kMember;
  py::array_t<Item> view(static_cast<py::ssize_t>(values.size()), values.data(), self);
  py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return view;
}

py::dict ToDict(const Percentiles& p, double scale) {
  return py::dict("mean"_a = p.mean * scale, "p50"_a = p.p50 * scale, "p90"_a = p.p90 * scale,
                  "p99"_a = p.p99 * scale);
}

py::typing::Dict<py::str, py::object> SummaryOf(const SimulationResult& result, double ttft_s,
                                                double tpot_s, double e2e_s, double gap_s) {
  const Summary s = Summarize(result, {ttft_s, tpot_s, e2e_s, gap_s});
  constexpr double kMs = 1e3;
  return py::dict("requests_done"_a = s.num_done, "ttft_ms"_a = ToDict(s.ttft_s, kMs),
                  "tpot_ms"_a = ToDict(s.tpot_s, kMs), "e2e_ms"_a = ToDict(s.e2e_s, kMs),
                  "max_gap_ms"_a = ToDict(s.max_gap_s, kMs), "requests_per_s"_a = s.requests_per_s,
                  "output_tok_s"_a = s.output_tokens_per_s, "total_tok_s"_a = s.total_tokens_per_s,
                  "goodput_per_s"_a = s.goodput_per_s, "slo_share"_a = s.slo_share,
                  "prefix_hit_share"_a = s.cached_share);
}

Lengths MakeLengths(const std::string& kind, double a, double b) {
  using Kind = Lengths::Kind;
  for (const auto& [name, value] :
       {std::pair{"fixed", Kind::kFixed}, std::pair{"uniform", Kind::kUniform},
        std::pair{"lognormal", Kind::kLognormal}, std::pair{"exponential", Kind::kExponential}}) {
    if (kind == name) return {value, a, b};
  }
  throw py::value_error("kind must be fixed, uniform, lognormal or exponential, not " + kind);
}

// As MakeLengths takes them.
py::tuple ToTuple(const Lengths& lengths) {
  constexpr const char* kKinds[] = {"fixed", "uniform", "lognormal", "exponential"};
  return py::make_tuple(kKinds[static_cast<int>(lengths.kind)], lengths.a, lengths.b);
}

// Arguments of runtime.simulation.Workload.
py::typing::Dict<py::str, py::object> ArgumentsOf(const NamedWorkload& named) {
  const Workload& workload = named.workload;
  return py::dict("name"_a = named.name, "prompt"_a = ToTuple(workload.prompt),
                  "output"_a = ToTuple(workload.output),
                  "rate"_a = named.has_rate ? py::cast(workload.rate) : py::none(),
                  "cv"_a = workload.cv, "num_trees"_a = workload.prefixes.num_trees,
                  "prompt_share"_a = workload.prefixes.prompt_share);
}

void BindWorkload(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(SimulatedRequest, arrival_ns, prefix_id, prefix_len, prompt_len, output_len,
                       max_tokens, tenant, priority);
  py::class_<Lengths>(m, "Lengths", "A distribution of lengths in tokens.")
      .def(py::init(&MakeLengths), "kind"_a, "a"_a, "b"_a = 0.0,
           "fixed(length), uniform(least, largest), lognormal(mu, sigma), exponential(mean)")
      .def_property_readonly("mean", &Lengths::mean);
  py::class_<SharedPrefixes>(m, "SharedPrefixes", "A forest of prefixes that prompts share.")
      .def(py::init([](std::int32_t trees, std::int32_t branching, std::int32_t depth,
                       std::int32_t segment_len, double prompt_share, double request_share) {
             return SharedPrefixes{trees,       branching,    depth,
                                   segment_len, prompt_share, request_share};
           }),
           "num_trees"_a = 0, py::kw_only(), "branching"_a = 1, "depth"_a = 1, "segment_len"_a = 0,
           "prompt_share"_a = 0.0, "request_share"_a = 1.0);
  py::class_<Workload>(m, "Workload",
                       "Requests made up from distributions; a function of its seed. Raises "
                       "ConfigError.")
      .def(py::init([](const Lengths& prompt, const Lengths& output, std::int64_t num_requests,
                       std::int64_t seed, double rate, double cv, std::int32_t concurrency,
                       std::int32_t queue_depth, std::int32_t max_tokens,
                       const SharedPrefixes& prefixes) {
             Workload workload;
             workload.prompt = prompt;
             workload.output = output;
             workload.prefixes = prefixes;
             workload.num_requests = num_requests;
             workload.seed = seed;
             workload.max_tokens = max_tokens;
             workload.rate = rate;
             workload.cv = cv;
             workload.concurrency = concurrency;
             workload.queue_depth = queue_depth;
             workload.Validate();
             return workload;
           }),
           "prompt"_a, "output"_a, py::kw_only(), "num_requests"_a, "seed"_a, "rate"_a, "cv"_a,
           "concurrency"_a, "queue_depth"_a, "max_tokens"_a, "prefixes"_a)
      .def_readonly("num_requests", &Workload::num_requests);
  m.def(
      "find_workload", [](const std::string& name) { return ArgumentsOf(FindWorkload(name)); },
      "name"_a,
      "Arguments of a workload with a name, or one described as fixed:IN,OUT or "
      "uniform:LEAST,LARGEST. Raises ConfigError.");
  m.def(
      "workload_names",
      [] {
        std::vector<std::string> names;
        for (const NamedWorkload& named : NamedWorkloads()) names.push_back(named.name);
        return names;
      },
      "Of workloads whose parameters are published.");
  m.attr("simulated_request") = py::dtype::of<SimulatedRequest>();
}

void BindResult(py::module_& m) {
  using R = SimulationResult;
  PYBIND11_NUMPY_DTYPE(RequestRecord, arrival_s, ttft_s, e2e_s, max_gap_s, prompt_len, output_len,
                       num_cached, num_preemptions, replica, tenant, is_done);
  PYBIND11_NUMPY_DTYPE(TimelinePoint, time_s, num_running, num_waiting, num_held_blocks,
                       num_cached_blocks);
  py::class_<R>(m, "SimulationResult", "What a simulation saw.")
      .def_property_readonly("requests", &View<RequestRecord, &R::requests>,
                             "structured array, one record for each request by arrival")
      .def_property_readonly("timeline", &View<TimelinePoint, &R::timeline>,
                             "structured array, at most 4096 points")
      .def_readonly("totals", &R::totals, "sums over replicas")
      .def_readonly("duration_s", &R::duration_s)
      .def_readonly("num_scheduled_tokens", &R::num_scheduled_tokens)
      .def_readonly("num_wasted_tokens", &R::num_wasted_tokens)
      .def_readonly("busy_share", &R::busy_share)
      .def_readonly("held_share", &R::held_share, "of the blocks, by requests, mean over time")
      .def_readonly("held_share_queued", &R::held_share_queued, "the same while requests waited")
      .def_readonly("cached_share", &R::cached_share)
      .def_readonly("step_seconds", &R::step_seconds)
      .def("summary", &SummaryOf, py::kw_only(), "ttft_s"_a = kInfinity, "tpot_s"_a = kInfinity,
           "e2e_s"_a = kInfinity, "gap_s"_a = kInfinity,
           "Percentiles and rates; goodput counts requests that meet every limit.");
}

ReplayReport ReplayFile(const std::string& path) {
  const py::gil_scoped_release free;
  return Replay(path, CheckSignals());
}

void BindReplay(py::module_& m) {
  using R = ReplayReport;
  using D = R::Difference;
  py::class_<D>(m, "ReplayDifference", "A step that was decided in another way.")
      .def_readonly("step", &D::step)
      .def_readonly("expected", &D::expected, "hash of the recorded decision; None: no step")
      .def_readonly("found", &D::found, "hash of the replayed one; None: no step");
  py::class_<R>(m, "ReplayReport", "What the replay of an event log showed.")
      .def_readonly("num_steps", &R::num_steps, "decided as recorded")
      .def_readonly("num_requests", &R::num_requests)
      .def_readonly("seconds", &R::seconds, "that the scheduler's clock passed")
      .def_readonly("runtime_version", &R::runtime_version, "that recorded it")
      .def_readonly("difference", &R::difference, "the first one, or None")
      .def_readonly("damage", &R::damage, "why it could not be read on; empty: it was whole");
  m.def("replay", &ReplayFile, "path"_a,
        "Feeds a recorded event log to a new scheduler and compares its decisions. Raises "
        "ConfigError.");
}

}  // namespace

void BindSimulation(py::module_& m) {
  BindWorkload(m);
  BindResult(m);
  BindReplay(m);
  py::class_<ReplicaConfig>(m, "ReplicaConfig", "A scheduler, its pool and its step times.")
      .def(py::init([](const SchedulerConfig& scheduler, std::int32_t num_blocks,
                       const StepTimeModel& step_time, std::string event_log) {
             ReplicaConfig config{scheduler, num_blocks, step_time, std::move(event_log)};
             config.Validate();
             return config;
           }),
           "scheduler"_a, "num_blocks"_a, "step_time"_a, py::kw_only(), "event_log"_a = "")
      .def_property_readonly("max_len", &ReplicaConfig::max_len,
                             "tokens that a prompt and its output may have together");
  py::class_<FleetConfig>(m, "FleetConfig", "Replicas behind a router.")
      .def(py::init([](const ReplicaConfig& replica, std::int32_t num_replicas,
                       const std::string& router, double report_interval_s,
                       std::int32_t num_threads) {
             FleetConfig config{replica, num_replicas,
                                FromName<RouterKind>("router", router, kRouters), report_interval_s,
                                num_threads};
             config.Validate();
             return config;
           }),
           "replica"_a, py::kw_only(), "num_replicas"_a, "router"_a, "report_interval_s"_a,
           "num_threads"_a);
  m.def(
      "simulate",
      [](const ReplicaConfig& config, const Workload& workload) {
        return RunWorkload(&Simulate, config, workload);
      },
      "config"_a, "workload"_a, "One replica; without the GIL.");
  m.def(
      "simulate",
      [](const ReplicaConfig& config, const py::array& trace) {
        return RunTrace(&Simulate, config, trace);
      },
      "config"_a, "trace"_a, "trace: array of dtype simulated_request.");
  m.def(
      "simulate_fleet",
      [](const FleetConfig& config, const Workload& workload) {
        return RunWorkload(&SimulateFleet, config, workload);
      },
      "config"_a, "workload"_a);
  m.def(
      "simulate_fleet",
      [](const FleetConfig& config, const py::array& trace) {
        return RunTrace(&SimulateFleet, config, trace);
      },
      "config"_a, "trace"_a);
}

}  // namespace runtime::bindings
