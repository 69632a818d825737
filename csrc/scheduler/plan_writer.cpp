#include "scheduler/plan_writer.h"

#include <algorithm>

#include "common/check.h"
#include "common/plan_hash.h"

namespace runtime {

namespace plan = step_plan;

namespace {

// Room in one plan for prefix hits and for lists of new rows, beyond what one request may need; a
// request that finds no room starts one step later.
constexpr std::int64_t kExtraNewBlocks = 8192;
constexpr std::int64_t kExtraListWords = 1 << 16;
constexpr std::int64_t kExtraCopies = 1024;

std::int32_t Size(const auto& list) { return static_cast<std::int32_t>(list.size()); }

bool NeedsKnownIds(const Request& request) {
  return (request.sample_flags & (plan::kSamplePenalties | plan::kSampleScore)) != 0;
}

bool IsPlainGreedy(const PlannedRow& row) {
  if ((row.flags & plan::kRowScore) != 0) return false;
  if ((row.flags & plan::kRowSample) == 0) return true;
  return row.request->sample_flags == plan::kSampleGreedy;
}

}  // namespace

void StepDraft::Reset() {
  decode_rows.clear();
  prefill_rows.clear();
  new_blocks.clear();
  new_rows.clear();
  started.clear();
  copies.clear();
  num_tokens = 0;
  num_list_words = 0;
}

PlanWriter::PlanWriter(const SchedulerConfig& config) {
  const std::int64_t rows = config.max_num_seqs;
  const std::int64_t tokens = config.max_num_batched_tokens;
  max_new_blocks_ =
      rows + tokens / config.block_size + config.max_num_blocks_per_seq() + kExtraNewBlocks;
  max_list_words_ = std::int64_t{config.vocab_size} + config.max_model_len +
                    2 * RequestParams::kMaxLogitBias + plan::kMaxMaskedIds + kExtraListWords;
  max_copies_ = config.num_host_blocks > 0 ? config.max_num_blocks_per_seq() + kExtraCopies : 0;
  capacity_ = plan::kHeaderWords + rows * plan::kRowWords + tokens +
              max_new_blocks_ * plan::kNewBlockWords + rows * plan::kNewRowWords + max_list_words_ +
              max_copies_ * plan::kCopyWords + rows;
}

bool PlanWriter::HasRoom(const StepDraft& draft, std::int32_t num_blocks,
                         std::int32_t num_list_words) const {
  return Size(draft.new_blocks) + num_blocks <= max_new_blocks_ &&
         draft.num_list_words + num_list_words <= max_list_words_;
}

std::int32_t PlanWriter::NumListWords(const Request& request) const {
  const RequestParams& params = request.params;
  const std::int32_t known = NeedsKnownIds(request) ? Size(request.tokens) : 0;
  return known + 2 * Size(params.logit_bias()) + Size(params.allowed_token_ids()) +
         Size(request.masked_ids);
}

void PlanWriter::Write(std::int32_t step, const StepDraft& draft, std::span<std::int32_t> buffer) {
  const Sections at = WriteSections(draft, buffer);
  WriteHeader(step, draft, at, buffer);
  Sign(buffer.first(static_cast<std::size_t>(at.end)));
}

PlanWriter::Sections PlanWriter::WriteSections(const StepDraft& draft,
                                               std::span<std::int32_t> buffer) {
  Sections at;
  PackedWriter out(buffer, plan::kHeaderWords);
  at.rows = out.offset();
  WriteRows(draft, out);
  at.tokens = out.offset();
  for (const PlannedRow& row : draft.prefill_rows) {
    out.Put(std::span(row.request->tokens).subspan(row.num_computed, row.num_scheduled));
  }
  at.new_blocks = out.offset();
  for (const NewBlock& block : draft.new_blocks) {
    out.Put(block.row);
    out.Put(block.index);
    out.Put(block.block);
  }
  at.new_rows = out.offset();
  PackedWriter lists(buffer, at.new_rows + Size(draft.new_rows) * plan::kNewRowWords);
  for (const Request* request : draft.new_rows) WriteNewRow(*request, out, lists);
  PackedWriter behind_lists(buffer, lists.offset());
  at.copies = behind_lists.offset();
  for (const PlannedCopy& copy : draft.copies) {
    behind_lists.Put(copy.kind);
    behind_lists.Put(copy.source);
    behind_lists.Put(copy.destination);
  }
  at.freed_rows = behind_lists.offset();
  if (draft.has_rows()) behind_lists.Put(std::span(draft.freed_rows));
  at.end = behind_lists.offset();
  return at;
}

void PlanWriter::WriteHeader(std::int32_t step, const StepDraft& draft, const Sections& at,
                             std::span<std::int32_t> buffer) const {
  const std::int32_t num_rows = Size(draft.decode_rows) + Size(draft.prefill_rows);
  PackedWriter header(buffer);
  header.Put(plan::kVersion);
  header.Put(step);
  header.PutZeros(2);  // the decision hash, see Sign
  header.Put(num_rows);
  header.Put(Size(draft.decode_rows));
  header.Put(draft.num_tokens);
  header.Put(max_len_);
  for (const std::int32_t word :
       {at.rows, num_rows, at.tokens, at.new_blocks - at.tokens, at.new_blocks,
        Size(draft.new_blocks), at.new_rows, Size(draft.new_rows), at.copies, Size(draft.copies),
        at.freed_rows, at.end - at.freed_rows}) {
    header.Put(word);
  }
  header.Put(at.end);
  header.Put((greedy_only_ ? plan::kStepGreedyOnly : 0) | (has_masked_ ? plan::kStepMasked : 0));
  header.Put(draft.num_repeated_tokens);
  header.PutZeros(1);
}

void PlanWriter::Sign(std::span<std::int32_t> words) {
  decision_hash_ = PlanHash(decision_hash_, words);
  words[plan::kHeaderHashLow] = static_cast<std::int32_t>(decision_hash_);
  words[plan::kHeaderHashHigh] = static_cast<std::int32_t>(decision_hash_ >> 32);
}

void PlanWriter::WriteRows(const StepDraft& draft, PackedWriter& out) {
  max_len_ = 0;
  greedy_only_ = true;
  has_masked_ = false;
  for (const auto* rows : {&draft.decode_rows, &draft.prefill_rows}) {
    for (const PlannedRow& row : *rows) {
      out.Put(row.request->row);
      out.Put(row.num_computed);
      out.Put(row.num_scheduled);
      out.Put(row.flags);
      max_len_ = std::max(max_len_, row.num_computed + row.num_scheduled);
      greedy_only_ = greedy_only_ && IsPlainGreedy(row);
      has_masked_ = has_masked_ || NeedsMask(*row.request, row.flags);
    }
  }
}

void PlanWriter::WriteNewRow(const Request& request, PackedWriter& record,
                             PackedWriter& lists) const {
  const RequestParams& params = request.params;
  record.Put(request.row);
  record.Put(request.epoch);
  record.Put(request.sample_flags);
  record.Put(params.temperature());
  record.Put(params.top_p());
  record.Put(params.top_k());
  record.Put(params.min_p());
  record.Put(params.presence_penalty());
  record.Put(params.frequency_penalty());
  record.Put(params.repetition_penalty());
  record.Put(static_cast<std::int32_t>(request.seed));
  record.Put(static_cast<std::int32_t>(request.seed >> 32));
  record.Put(request.prompt_len);
  record.Put(params.min_tokens());
  record.Put(params.num_logprobs());
  record.Put(request.score_start);

  record.Put(lists.offset());
  record.Put(NeedsKnownIds(request) ? Size(request.tokens) : 0);
  if (NeedsKnownIds(request)) lists.Put(std::span(request.tokens));
  record.Put(lists.offset());
  record.Put(Size(params.logit_bias()));
  for (const auto& [id, bias] : params.logit_bias()) {
    lists.Put(id);
    lists.Put(bias);
  }
  record.Put(lists.offset());
  record.Put(Size(params.allowed_token_ids()));
  lists.Put(std::span(params.allowed_token_ids()));
  record.Put(lists.offset());
  record.Put(Size(request.masked_ids));
  lists.Put(std::span(request.masked_ids));
  record.PutZeros(8);
}

}  // namespace runtime
