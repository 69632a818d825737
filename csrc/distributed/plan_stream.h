// StepPlans on the control ring. Each travels with its step number and the scheduler's decision
// hash, which covers every plan so far; a reader computes the hash again from what it got. So a
// rank that lost, repeated or garbled a plan finds out before it runs it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "distributed/control_ring.h"

namespace runtime {

class PlanWriterStream {
 public:
  explicit PlanWriterStream(RingWriter writer) : writer_(writer) {}

  RingWriter& ring() { return writer_; }

  // Whether this plan fits without waiting for a reader.
  bool HasRoom(std::span<const std::int32_t> plan) const;

  // False as RingWriter::Write. `plan` is a whole StepPlan.
  bool Write(std::span<const std::int32_t> plan, double timeout_s);

  // The last message: readers end.
  bool WriteEnd(double timeout_s);

 private:
  RingWriter writer_;
};

class PlanReaderStream {
 public:
  PlanReaderStream(RingReader reader, int rank) : reader_(reader), rank_(rank) {}

  // Waits for the next plan, writes it to the front of `buffer` and returns its step; nullopt at
  // the end, or once the ring is closed. Throws EngineDead, with both ranks' step and hash, for a
  // plan that is not the next one, or not the one that was written.
  std::optional<std::int32_t> Read(std::span<std::int32_t> buffer);

  // The step that `Read` returned has been run.
  void FinishStep(std::int32_t step) { reader_.own().done_step.store(step); }

  // How many collectives this rank has called, those of that step included.
  void ShowCalls(std::uint32_t num_calls) { reader_.own().num_calls.store(num_calls); }

 private:
  void Verify(std::int32_t step, std::uint64_t hash, std::span<std::int32_t> plan);

  RingReader reader_;
  int rank_;
  std::int32_t last_step_ = 0;
  std::uint64_t decision_hash_ = 0;
};

}  // namespace runtime
