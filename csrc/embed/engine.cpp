#include "runtime/engine.h"

#include <mutex>
#include <thread>

#include "embed/bridge.h"
#include "embed/callbacks.h"
#include "embed/errors.h"
#include "embed/fields.h"
#include "embed/mailbox.h"
#include "embed/mailbox_bridge.h"
#include "embed/python_host.h"

namespace runtime {
namespace {

using embed::Clock;
using embed::ErrorSlot;
using embed::Fields;

Clock::time_point After(std::chrono::nanoseconds timeout) {
  const auto now = Clock::now();
  const auto longest = Clock::time_point::max() - now;  // "for ever" must not go round
  return timeout > longest ? Clock::time_point::max() : now + timeout;
}

MemoryPlan ToMemoryPlan(const embed::BridgePlan& plan) {
  return {.weights = plan.weights,
          .kv_bytes_per_token = plan.kv_bytes_per_token,
          .kv_blocks = plan.kv_blocks,
          .block_size = plan.block_size,
          .kv_cache = plan.kv_cache,
          .workspace = plan.workspace,
          .graphs = plan.graphs,
          .context = plan.context,
          .total = plan.total,
          .max_model_len = plan.max_model_len,
          .max_sequences = plan.max_sequences};
}

}  // namespace

class Engine::Impl {
 public:
  explicit Impl(const EngineConfig& config)
      : bridge_(embed::HostPython(config.python)), on_callback_error_(config.on_callback_error) {
    ErrorSlot error;
    const Fields fields(config);
    error.Check(bridge_.open(fields.data(), fields.size(), embed::BridgeTo(mailbox_), &engine_,
                             error.sink()));
  }

  ~Impl() {
    mailbox_->Close();
    if (engine_ != nullptr && embed::PythonRuns()) bridge_.close(engine_);
  }

  embed::Mailbox& mailbox() { return *mailbox_; }

  RequestId Submit(Request request, Callbacks callbacks) {
    embed::CheckNumbers(request);
    if (callbacks.on_chunk || callbacks.on_end) StartCallbackThread();
    return mailbox_->Submit(std::move(request), std::move(callbacks));
  }

  SchedulerStats Stats() {
    if (!embed::PythonRuns()) throw RequestAborted("Python has ended, and the engine with it");
    SchedulerStats stats;
    ErrorSlot error;
    error.Check(bridge_.stats(engine_, &stats, error.sink()));
    return stats;
  }

 private:
  void StartCallbackThread() {
    const std::lock_guard lock(mutex_);
    if (callback_thread_ == nullptr) {
      callback_thread_ = std::make_unique<embed::CallbackThread>(mailbox_, on_callback_error_);
    }
  }

  const embed::BridgeEngine& bridge_;
  std::shared_ptr<embed::Mailbox> mailbox_ = std::make_shared<embed::Mailbox>();
  void* engine_ = nullptr;
  std::function<void(RequestId, std::exception_ptr)> on_callback_error_;
  std::mutex mutex_;
  std::unique_ptr<embed::CallbackThread> callback_thread_;  // last: it ends before the rest
};

Engine::Engine(const EngineConfig& config) : impl_(std::make_unique<Impl>(config)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

Engine::Impl& Engine::impl() const {
  if (impl_ == nullptr) throw InvalidArgument("the engine was moved from");
  return *impl_;
}

MemoryPlan Engine::Plan(const EngineConfig& config) {
  embed::BridgePlan plan{};
  ErrorSlot error;
  const Fields fields(config);
  const embed::BridgeEngine& bridge = embed::HostPython(config.python);
  error.Check(bridge.plan(fields.data(), fields.size(), &plan, error.sink()));
  return ToMemoryPlan(plan);
}

RequestId Engine::Submit(Request request) { return impl().Submit(std::move(request), {}); }

RequestId Engine::Submit(Request request, Callbacks callbacks) {
  return impl().Submit(std::move(request), std::move(callbacks));
}

std::optional<Chunk> Engine::Next(RequestId id) {
  std::optional<Chunk> chunk(std::in_place);
  if (impl().mailbox().Next(id, *chunk, {}, &embed::RequireNoGil) == Poll::kEnded) chunk.reset();
  return chunk;
}

Poll Engine::Next(RequestId id, Chunk& chunk, std::chrono::nanoseconds timeout) {
  return impl().mailbox().Next(id, chunk, After(timeout), &embed::RequireNoGil);
}

Poll Engine::TryNext(RequestId id, Chunk& chunk) { return impl().mailbox().TryNext(id, chunk); }

void Engine::Abort(RequestId id) { impl().mailbox().Abort(id); }

void Engine::Release(RequestId id) { impl().mailbox().Release(id); }

std::vector<double> Engine::Score(Prompt prompt, Prompt continuation) {
  const RequestId id = impl().mailbox().Score(std::move(prompt), std::move(continuation));
  std::vector<double> scores;
  while (const auto chunk = Next(id)) {
    for (const TokenLogprobs& token : chunk->logprobs) scores.push_back(token.logprobs.front());
  }
  return scores;
}

SchedulerStats Engine::Stats() { return impl().Stats(); }

void Engine::Drain() { impl().mailbox().Drain({}, &embed::RequireNoGil); }

void Engine::Drain(std::chrono::nanoseconds timeout) {
  impl().mailbox().Drain(After(timeout), &embed::RequireNoGil);
}

}  // namespace runtime
