#include "distributed/plan_stream.h"

#include <cstdio>
#include <limits>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/plan_hash.h"
#include "runtime/error.h"
#include "runtime/step_plan.h"

namespace runtime {
namespace {

namespace plan = step_plan;

constexpr std::uint32_t kPlan = 1, kEnd = 2;

// Ahead of each plan; kEnd comes alone.
struct PlanHeader {
  std::uint32_t kind;
  std::int32_t step;
  std::uint64_t decision_hash;
  std::uint32_t num_words;
  std::uint32_t reserved;
};

std::uint64_t DecisionHash(std::span<const std::int32_t> words) {
  const auto low = static_cast<std::uint32_t>(words[plan::kHeaderHashLow]);
  const auto high = static_cast<std::uint32_t>(words[plan::kHeaderHashHigh]);
  return low | std::uint64_t{high} << 32;
}

std::string Text(std::int32_t step, std::uint64_t hash) {
  char text[64];
  std::snprintf(text, sizeof(text), "step %d with decision hash %016llx", step,
                static_cast<unsigned long long>(hash));
  return text;
}

std::int32_t StepAfter(std::int32_t step) {
  return step == std::numeric_limits<std::int32_t>::max() ? 0 : step + 1;
}

}  // namespace

bool PlanWriterStream::HasRoom(std::span<const std::int32_t> words) const {
  return writer_.HasRoom(sizeof(PlanHeader) + words.size_bytes());
}

bool PlanWriterStream::Write(std::span<const std::int32_t> words, double timeout_s) {
  Require(words.size() >= plan::kHeaderWords, "a plan has at least its header");
  const PlanHeader header{kPlan, words[plan::kHeaderStep], DecisionHash(words),
                          static_cast<std::uint32_t>(words.size()), 0};
  return writer_.Write(std::as_bytes(std::span(&header, 1)), timeout_s) &&
         writer_.Write(std::as_bytes(words), timeout_s);
}

bool PlanWriterStream::WriteEnd(double timeout_s) {
  const PlanHeader header{kEnd, 0, 0, 0, 0};
  return writer_.Write(std::as_bytes(std::span(&header, 1)), timeout_s);
}

std::optional<std::int32_t> PlanReaderStream::Read(std::span<std::int32_t> buffer) {
  PlanHeader header;
  if (!reader_.Read(std::as_writable_bytes(std::span(&header, 1)))) return std::nullopt;
  if (header.kind == kEnd) return std::nullopt;
  if (header.kind != kPlan || header.num_words < plan::kHeaderWords ||
      header.num_words > buffer.size()) {
    throw EngineDead("rank " + std::to_string(rank_) + " has a buffer of " +
                     std::to_string(buffer.size()) + " words for a plan that rank 0 wrote with " +
                     std::to_string(header.num_words));
  }
  const auto words = buffer.first(header.num_words);
  if (!reader_.Read(std::as_writable_bytes(words))) return std::nullopt;
  Verify(header.step, header.decision_hash, words);
  reader_.own().begun_step.store(header.step);
  return header.step;
}

void PlanReaderStream::Verify(std::int32_t step, std::uint64_t hash,
                              std::span<std::int32_t> words) {
  // the hash was computed before it was written into the plan
  const std::int32_t low = std::exchange(words[plan::kHeaderHashLow], 0);
  const std::int32_t high = std::exchange(words[plan::kHeaderHashHigh], 0);
  decision_hash_ = PlanHash(decision_hash_, words);
  words[plan::kHeaderHashLow] = low;
  words[plan::kHeaderHashHigh] = high;
  const std::int32_t expected = StepAfter(std::exchange(last_step_, step));
  if (step != expected || hash != decision_hash_ || words[plan::kHeaderStep] != step) {
    throw EngineDead("rank " + std::to_string(rank_) + " is at " + Text(expected, decision_hash_) +
                     " and rank 0 at " + Text(step, hash));
  }
}

}  // namespace runtime
