#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/packed_writer.h"
#include "runtime/scheduler.h"
#include "runtime/step_plan.h"
#include "scheduler/request.h"

namespace runtime {

struct PlannedRow {
  Request* request;
  std::int32_t num_computed;  // before the step
  std::int32_t num_scheduled;
  std::int32_t flags;
};

struct NewBlock {
  std::int32_t row, index;
  BlockId block;
};

struct PlannedCopy {
  std::int32_t kind, source, destination;
};

// What a step will do, before it is written down. Reused from step to step.
struct StepDraft {
  std::vector<PlannedRow> decode_rows;
  std::vector<PlannedRow> prefill_rows;
  std::vector<NewBlock> new_blocks;
  std::vector<Request*> new_rows;
  std::vector<PlannedCopy> copies;
  std::vector<std::int32_t> freed_rows;  // kept until a plan has carried them
  std::int32_t num_tokens = 0;
  std::int32_t num_list_words = 0;  // of the new rows
  std::int32_t num_repeated_tokens = 0;
  std::vector<RequestId> started;

  bool has_rows() const { return !decode_rows.empty() || !prefill_rows.empty(); }
  void Reset();
};

// Whether a row of that request, with those flags of the plan, is sampled under a mask.
inline bool NeedsMask(const Request& request, std::int32_t row_flags) {
  return request.is_masked && (row_flags & step_plan::kRowSample) != 0;
}

// Writes drafts as StepPlans. The decision hash of a step covers its plan and the hash before it.
class PlanWriter {
 public:
  explicit PlanWriter(const SchedulerConfig& config);

  std::int64_t capacity() const { return capacity_; }

  // Whether a new row with so many blocks and words of lists still fits the plan.
  bool HasRoom(const StepDraft& draft, std::int32_t num_blocks, std::int32_t num_list_words) const;
  // Whether so many copies still fit. Those of one request always fit into an empty draft.
  bool HasRoomForCopies(const StepDraft& draft, std::size_t count) const {
    return static_cast<std::int64_t>(draft.copies.size() + count) <= max_copies_;
  }
  // Words of the lists of a request's new_rows record.
  std::int32_t NumListWords(const Request& request) const;

  // REQUIRES: every list fits, see HasRoom.
  void Write(std::int32_t step, const StepDraft& draft, std::span<std::int32_t> buffer);

 private:
  // Where the sections of a plan begin, in words from its start, and where it ends.
  struct Sections {
    std::int32_t rows, tokens, new_blocks, new_rows, copies, freed_rows, end;
  };

  Sections WriteSections(const StepDraft& draft, std::span<std::int32_t> buffer);
  void WriteHeader(std::int32_t step, const StepDraft& draft, const Sections& at,
                   std::span<std::int32_t> buffer) const;
  // Covers a plan whose hash words are zero, and writes them.
  void Sign(std::span<std::int32_t> words);
  void WriteRows(const StepDraft& draft, PackedWriter& out);
  void WriteNewRow(const Request& request, PackedWriter& record, PackedWriter& lists) const;

  std::int64_t max_new_blocks_;
  std::int64_t max_list_words_;
  std::int64_t max_copies_;
  std::int64_t capacity_;
  std::uint64_t decision_hash_ = 0;
  std::int32_t max_len_ = 0;
  bool greedy_only_ = true;
  bool has_masked_ = false;
};

}  // namespace runtime
