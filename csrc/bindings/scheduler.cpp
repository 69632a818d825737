#include "runtime/scheduler.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/bind.h"
#include "runtime/error.h"
#include "scheduler/setting_names.h"

namespace py = pybind11;

namespace runtime::bindings {
namespace {

// A read-only view of one array of a result, which stays alive with it.
template <typename Result, typename Item, auto Member>
py::array_t<Item> View(const py::object& self) {
  const auto& values = self.cast<const Result&>().*Member;
  static_assert(sizeof(Item) == sizeof(values[0]));
  const auto size = static_cast<py::ssize_t>(values.size());
  py::array_t<Item> view(size, reinterpret_cast<const Item*>(values.data()), self);
  py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return view;
}

std::vector<TokenId> ToTokenIds(const py::object& ids) {
  if (py::array_t<TokenId, py::array::c_style>::check_(ids)) {
    const auto array = py::reinterpret_borrow<py::array_t<TokenId, py::array::c_style>>(ids);
    return {array.data(), array.data() + array.size()};
  }
  const auto sequence = py::reinterpret_steal<py::object>(
      PySequence_Fast(ids.ptr(), "prompt_ids must be a list or an array of token ids"));
  if (!sequence) throw py::error_already_set();
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence.ptr());
  std::vector<TokenId> tokens;
  tokens.reserve(static_cast<std::size_t>(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(sequence.ptr(), i);
    const Py_ssize_t id = PyNumber_AsSsize_t(item, nullptr);  // clips what does not fit
    if (id == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw InvalidRequest("prompt_ids", py::str(py::repr(item)), "integers");
    }
    if (id != static_cast<TokenId>(id)) {
      throw InvalidRequest("prompt_ids", "token id " + std::to_string(id),
                           "token ids of the vocabulary");
    }
    tokens.push_back(static_cast<TokenId>(id));
  }
  return tokens;
}

SchedulerConfig MakeConfig(
    std::int32_t max_num_seqs, std::int32_t max_num_batched_tokens, std::int32_t block_size,
    std::int32_t max_model_len, std::int32_t vocab_size, std::vector<TokenId> eos_token_ids,
    bool enable_prefix_caching, std::int32_t num_steps_in_flight, double watermark,
    std::int32_t preempt_every, std::int32_t max_queued_requests, std::int64_t seed,
    bool constant_block_hash, const std::string& policy, double priority_ageing_s,
    std::map<std::string, double> tenant_weights, double prompt_token_weight,
    double output_token_weight, const std::string& admission, double admission_reserve,
    std::int32_t length_window, double target_itl_ms, std::optional<StepTimeModel> step_time,
    const std::string& eviction, double max_pinned_share, std::int32_t num_host_blocks,
    double recompute_token_s, double recompute_context_s, double transfer_block_s) {
  SchedulerConfig config;
  config.max_num_seqs = max_num_seqs;
  config.max_num_batched_tokens = max_num_batched_tokens;
  config.block_size = block_size;
  config.max_model_len = max_model_len;
  config.vocab_size = vocab_size;
  config.eos_token_ids = std::move(eos_token_ids);
  config.enable_prefix_caching = enable_prefix_caching;
  config.num_steps_in_flight = num_steps_in_flight;
  config.watermark = watermark;
  config.preempt_every = preempt_every;
  config.max_queued_requests = max_queued_requests;
  config.seed = seed;
  config.constant_block_hash = constant_block_hash;
  config.policy = FromName<SchedulingPolicy>("policy", policy, kPolicies);
  config.priority_ageing_s = priority_ageing_s;
  config.tenant_weights = std::move(tenant_weights);
  config.prompt_token_weight = prompt_token_weight;
  config.output_token_weight = output_token_weight;
  config.admission = FromName<AdmissionMode>("admission", admission, kAdmissions);
  config.admission_reserve = admission_reserve;
  config.length_window = length_window;
  config.target_itl_ms = target_itl_ms;
  if (step_time) config.step_time = *std::move(step_time);
  config.eviction = FromName<EvictionPolicy>("eviction", eviction, kEvictions);
  config.max_pinned_share = max_pinned_share;
  config.num_host_blocks = num_host_blocks;
  config.recompute_token_s = recompute_token_s;
  config.recompute_context_s = recompute_context_s;
  config.transfer_block_s = transfer_block_s;
  config.Validate();
  return config;
}

void AttachPlanBuffers(Scheduler& scheduler,
                       const std::vector<std::pair<std::uintptr_t, std::size_t>>& buffers) {
  std::vector<PlanBuffer> spans;
  for (const auto& [address, num_words] : buffers) {
    spans.emplace_back(reinterpret_cast<std::int32_t*>(address), num_words);
  }
  scheduler.AttachPlanBuffers(spans);
}

std::int32_t Schedule(Scheduler& scheduler) {
  using std::chrono::microseconds;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  scheduler.SetTime(std::chrono::duration_cast<microseconds>(now).count());
  return scheduler.Schedule();
}

StepResult Update(Scheduler& scheduler, std::int32_t step,
                  const py::array_t<TokenId, py::array::c_style>& token_ids) {
  return scheduler.Update(step, {token_ids.data(), static_cast<std::size_t>(token_ids.size())});
}

void BindConfig(py::module_& m) {
  using py::literals::operator""_a;
  const SchedulerConfig defaults;
  py::class_<SchedulerConfig>(
      m, "SchedulerConfig",
      "Limits of the scheduler. Raises ConfigError. preempt_every and "
      "constant_block_hash are for tests, admission='oracle' is for simulations.")
      .def(py::init(&MakeConfig), "max_num_seqs"_a, "max_num_batched_tokens"_a, "block_size"_a,
           "max_model_len"_a, "vocab_size"_a, py::kw_only(),
           "eos_token_ids"_a = std::vector<TokenId>{}, "enable_prefix_caching"_a = true,
           "num_steps_in_flight"_a = 1, "watermark"_a = 0.01, "preempt_every"_a = 0,
           "max_queued_requests"_a = -1, "seed"_a = 0, "constant_block_hash"_a = false,
           "policy"_a = "fcfs", "priority_ageing_s"_a = defaults.priority_ageing_s,
           "tenant_weights"_a = defaults.tenant_weights,
           "prompt_token_weight"_a = defaults.prompt_token_weight,
           "output_token_weight"_a = defaults.output_token_weight, "admission"_a = "past_future",
           "admission_reserve"_a = defaults.admission_reserve,
           "length_window"_a = defaults.length_window, "target_itl_ms"_a = 0.0,
           "step_time"_a = py::none(), "eviction"_a = "lru",
           "max_pinned_share"_a = defaults.max_pinned_share, "num_host_blocks"_a = 0,
           "recompute_token_s"_a = defaults.recompute_token_s,
           "recompute_context_s"_a = defaults.recompute_context_s,
           "transfer_block_s"_a = defaults.transfer_block_s)
      .def_readonly("max_num_seqs", &SchedulerConfig::max_num_seqs)
      .def_readonly("max_num_batched_tokens", &SchedulerConfig::max_num_batched_tokens)
      .def_readonly("block_size", &SchedulerConfig::block_size)
      .def_readonly("max_model_len", &SchedulerConfig::max_model_len)
      .def_readonly("vocab_size", &SchedulerConfig::vocab_size)
      .def_readonly("num_steps_in_flight", &SchedulerConfig::num_steps_in_flight)
      .def_property_readonly("max_num_blocks_per_seq", &SchedulerConfig::max_num_blocks_per_seq);
}

void BindResult(py::module_& m) {
  using R = StepResult;
  py::class_<R>(
      m, "StepResult",
      "What a step brought, as parallel read-only numpy arrays: one entry for each sampled "
      "token, each scored row and each request that ended without one.")
      .def_property_readonly("request_ids", &View<R, RequestId, &R::request_ids>, "int64 [n]")
      .def_property_readonly("token_ids", &View<R, TokenId, &R::token_ids>, "int32 [n]; -1: none")
      .def_property_readonly("finish", &View<R, std::int8_t, &R::finish>,
                             "int8 [n]; 0 running, 1 stop, 2 length, 3 abort, 4 error")
      .def_property_readonly("rows", &View<R, std::int32_t, &R::rows>,
                             "int32 [n]; row index in the step's plan, -1: none")
      .def_property_readonly("stop_ids", &View<R, TokenId, &R::stop_ids>,
                             "int32 [n]; the stop token that ended it, -1: eos, or none did")
      .def_property_readonly("num_cached", &View<R, std::int32_t, &R::num_cached>,
                             "int32 [n]; tokens found in the prefix cache, on the last entry")
      .def_property_readonly("num_preemptions", &View<R, std::int32_t, &R::num_preemptions>,
                             "int32 [n]; on the last entry")
      .def_property_readonly("started", &View<R, RequestId, &R::started>,
                             "int64 [m]; requests that this step's plan took from the queue");
}

void BindSnapshot(py::module_& m) {
  using S = SchedulerSnapshot;
  py::class_<S>(
      m, "SchedulerSnapshot",
      "Who runs, who waits, and whose the KV blocks are, as parallel read-only numpy arrays: those "
      "that run first, in their order, then those that wait in theirs.")
      .def_property_readonly("request_ids", &View<S, RequestId, &S::request_ids>, "int64 [n]")
      .def_property_readonly("phases", &View<S, std::int8_t, &S::phases>,
                             "int8 [n]; 0 waiting, 1 running, 2 preempted")
      .def_property_readonly("prompt_lens", &View<S, std::int32_t, &S::prompt_lens>, "int32 [n]")
      .def_property_readonly("output_lens", &View<S, std::int32_t, &S::output_lens>, "int32 [n]")
      .def_property_readonly("num_computed", &View<S, std::int32_t, &S::num_computed>,
                             "int32 [n]; tokens whose KV entries exist or are being computed")
      .def_property_readonly("table_lens", &View<S, std::int32_t, &S::table_lens>,
                             "int32 [n]; blocks of each request")
      .def_property_readonly("blocks", &View<S, BlockId, &S::blocks>,
                             "int32 [sum of table_lens]; of all tables, one after the other")
      .def_property_readonly("num_owners", &View<S, std::int32_t, &S::num_owners>,
                             "int32 [num_blocks + 1], by block id")
      .def_property_readonly("is_cached", &View<S, std::int8_t, &S::is_cached>,
                             "int8 [num_blocks + 1]; findable in the prefix cache");
}

void BindStats(py::module_& m) {
  using S = SchedulerStats;
  py::class_<S>(m, "SchedulerStats")
      .def_readonly("num_waiting", &S::num_waiting)
      .def_readonly("num_running", &S::num_running)
      .def_readonly("num_steps_in_flight", &S::num_steps_in_flight)
      .def_readonly("num_tenants", &S::num_tenants)
      .def_readonly("num_blocks", &S::num_blocks)
      .def_readonly("num_free_blocks", &S::num_free_blocks)
      .def_readonly("num_cached_blocks", &S::num_cached_blocks)
      .def_readonly("num_pinned_blocks", &S::num_pinned_blocks)
      .def_readonly("num_host_blocks", &S::num_host_blocks)
      .def_readonly("num_cached_host_blocks", &S::num_cached_host_blocks)
      .def_readonly("num_transfers", &S::num_transfers)
      .def_readonly("num_steps", &S::num_steps)
      .def_readonly("num_prompt_tokens", &S::num_prompt_tokens)
      .def_readonly("num_cached_tokens", &S::num_cached_tokens)
      .def_readonly("num_prefix_queries", &S::num_prefix_queries)
      .def_readonly("num_prefix_hits", &S::num_prefix_hits)
      .def_readonly("num_evictions", &S::num_evictions)
      .def_readonly("num_host_evictions", &S::num_host_evictions)
      .def_readonly("num_stored_blocks", &S::num_stored_blocks)
      .def_readonly("num_loaded_blocks", &S::num_loaded_blocks)
      .def_readonly("num_swaps", &S::num_swaps)
      .def_readonly("num_output_tokens", &S::num_output_tokens)
      .def_readonly("num_recomputed_tokens", &S::num_recomputed_tokens)
      .def_readonly("num_preemptions", &S::num_preemptions)
      .def_readonly("num_finished", &S::num_finished);
}

using SchedulerClass = py::class_<Scheduler>;

void BindRequests(SchedulerClass& scheduler) {
  using py::literals::operator""_a;
  scheduler
      .def(
          "submit",
          [](Scheduler& self, RequestId request_id, const py::object& prompt_ids,
             const RequestParams& params, std::string cache_salt, std::int32_t score_start,
             std::int32_t priority, std::string tenant, bool is_masked) {
            self.Submit(request_id, ToTokenIds(prompt_ids), params,
                        {std::move(cache_salt), score_start, priority, std::move(tenant),
                         /*true_output_len=*/0, is_masked});
          },
          "request_id"_a, "prompt_ids"_a, "params"_a, py::kw_only(), "cache_salt"_a = "",
          "score_start"_a = -1, "priority"_a = 0, "tenant"_a = "", "is_masked"_a = false,
          "Queues a request. prompt_ids: a list, or fastest an int32 array. is_masked: before each "
          "of its samples the ids that it may take are written to its row. Raises "
          "InvalidRequestError, CapacityError.")
      .def(
          "validate",
          [](const Scheduler& self, const py::object& prompt_ids, const RequestParams& params) {
            self.Validate(ToTokenIds(prompt_ids), params);
          },
          "prompt_ids"_a, "params"_a,
          "Raises the InvalidRequestError that submit would; queues nothing. From any thread.")
      .def("abort", &Scheduler::Abort, "request_id"_a, "True if this call ends the request.")
      .def("stop", &Scheduler::Stop, "request_id"_a, "num_kept"_a,
           "A stop string ended the request after num_kept output tokens.")
      .def(
          "take_events", [](Scheduler& self) -> StepResult { return self.TakeEvents(); },
          "What no step in flight will bring: requests that ended while they waited.");
}

void BindPrefixes(SchedulerClass& scheduler) {
  using py::literals::operator""_a;
  scheduler
      .def("reset_prefix_cache", &Scheduler::ResetPrefixCache,
           "Forgets cached prefixes before the next step.")
      .def(
          "pin",
          [](Scheduler& self, const py::object& prompt_ids, const std::string& cache_salt) {
            const PinnedPrefix pin = self.Pin(ToTokenIds(prompt_ids), cache_salt);
            return std::pair(pin.id, pin.num_tokens);
          },
          "prompt_ids"_a, py::kw_only(), "cache_salt"_a = "",
          "Keeps the cached blocks of the longest prefix: (pin id, tokens), (-1, 0) if nothing is "
          "cached. Raises CapacityError.")
      .def("unpin", &Scheduler::Unpin, "pin_id"_a, "Whether it was still pinned.");
}

void BindSteps(SchedulerClass& scheduler) {
  using py::literals::operator""_a;
  scheduler
      .def_property_readonly("plan_capacity", &Scheduler::plan_capacity,
                             "int32 words that one plan buffer needs.")
      .def("attach_plan_buffers", &AttachPlanBuffers, "buffers"_a,
           "num_steps_in_flight + 1 pairs (address, num_words), written in turn. The memory must "
           "outlive the scheduler.")
      .def("schedule", &Schedule,
           "Tells the time, then plans the next step; the index of the buffer written, or -1: "
           "nothing can run now.")
      .def(
          "masked_rows",
          [](const Scheduler& self) {
            std::vector<std::pair<std::int32_t, RequestId>> found;
            for (const auto& [index, id] : self.MaskedRows()) found.emplace_back(index, id);
            return found;
          },
          "Of the newest plan: (index in the plan, request id) of each row that is sampled under a "
          "mask.")
      .def("update", &Update, "step"_a, py::arg("token_ids").noconvert(),
           "Retires the oldest step in flight. token_ids: int32, one for each row of its plan.")
      .def("transfer_done", &Scheduler::TransferDone, "step"_a,
           "The copies in the plan of that step are done; any time after it, in any order.")
      .def("wait", &Scheduler::Wait, "timeout_s"_a, py::call_guard<py::gil_scoped_release>(),
           "Blocks, without the GIL, until there is something to do, wake() or the timeout; "
           "whether there is.")
      .def("wake", &Scheduler::Wake, "Ends a wait().");
}

void BindViews(SchedulerClass& scheduler) {
  using py::literals::operator""_a;
  scheduler
      .def("record", &Scheduler::Record, "path"_a,
           "Writes an event log from now on, for replay(). Before the first request. Raises "
           "ConfigError when the file cannot be written.")
      .def("stop_recording", &Scheduler::StopRecording, "Ends the event log, if there is one.")
      .def("stats", &Scheduler::stats, "Counts as of the last step.")
      .def("snapshot", &Scheduler::Snapshot, "For people to look at; takes time for every block.")
      .def("check", &Scheduler::Check,
           "Raises RuntimeError that names the first broken invariant.");
}

}  // namespace

void BindScheduler(py::module_& m) {
  using py::literals::operator""_a;
  BindConfig(m);
  BindResult(m);
  BindStats(m);
  BindSnapshot(m);
  SchedulerClass scheduler(m, "Scheduler",
                           "Plans steps and keeps the KV blocks. submit, abort, stop, "
                           "reset_prefix_cache and wake may be called from any thread, the rest "
                           "from one at a time.");
  scheduler.def(py::init<const SchedulerConfig&, BlockAllocator&>(), "config"_a, "allocator"_a,
                py::keep_alive<1, 3>());
  BindRequests(scheduler);
  BindPrefixes(scheduler);
  BindSteps(scheduler);
  BindViews(scheduler);
}

}  // namespace runtime::bindings
