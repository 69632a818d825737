#include "runtime/step_plan.h"

#include "bindings/bind.h"

namespace py = pybind11;

namespace runtime::bindings {
namespace {

struct StepPlanLayout {};  // holds constants only; a class, so that the stub stays one file

}  // namespace

void BindStepPlan(py::module_& m) {
  namespace plan = step_plan;
  py::class_<StepPlanLayout> s(m, "step_plan", "Layout of a StepPlan, in int32 words.");
  const auto constant = [&s](const char* name, std::int32_t value) { s.attr(name) = value; };
  constant("VERSION", plan::kVersion);
  constant("HEADER_WORDS", plan::kHeaderWords);
  constant("HEADER_VERSION", plan::kHeaderVersion);
  constant("HEADER_STEP", plan::kHeaderStep);
  constant("HEADER_HASH_LOW", plan::kHeaderHashLow);
  constant("HEADER_HASH_HIGH", plan::kHeaderHashHigh);
  constant("HEADER_NUM_ROWS", plan::kHeaderNumRows);
  constant("HEADER_NUM_DECODE_ROWS", plan::kHeaderNumDecodeRows);
  constant("HEADER_NUM_TOKENS", plan::kHeaderNumTokens);
  constant("HEADER_MAX_LEN", plan::kHeaderMaxLen);
  constant("HEADER_ROWS", plan::kHeaderRows);
  constant("HEADER_TOKENS", plan::kHeaderTokens);
  constant("HEADER_NEW_BLOCKS", plan::kHeaderNewBlocks);
  constant("HEADER_NEW_ROWS", plan::kHeaderNewRows);
  constant("HEADER_COPIES", plan::kHeaderCopies);
  constant("HEADER_FREED_ROWS", plan::kHeaderFreedRows);
  constant("HEADER_NUM_WORDS", plan::kHeaderNumWords);
  constant("HEADER_FLAGS", plan::kHeaderFlags);
  constant("HEADER_REPEATED_TOKENS", plan::kHeaderRepeatedTokens);
  constant("STEP_GREEDY_ONLY", plan::kStepGreedyOnly);
  constant("STEP_MASKED", plan::kStepMasked);
  constant("ROW_WORDS", plan::kRowWords);
  constant("ROW_SAMPLE", plan::kRowSample);
  constant("ROW_HOST_TOKENS", plan::kRowHostTokens);
  constant("ROW_SCORE", plan::kRowScore);
  constant("NEW_BLOCK_WORDS", plan::kNewBlockWords);
  constant("NEW_ROW_WORDS", plan::kNewRowWords);
  constant("COPY_WORDS", plan::kCopyWords);
  constant("COPY_TO_HOST", plan::kCopyToHost);
  constant("COPY_FROM_HOST", plan::kCopyFromHost);
  constant("NEW_ROW_ROW", plan::kNewRowRow);
  constant("NEW_ROW_EPOCH", plan::kNewRowEpoch);
  constant("NEW_ROW_FLAGS", plan::kNewRowFlags);
  constant("NEW_ROW_TEMPERATURE", plan::kNewRowTemperature);
  constant("NEW_ROW_TOP_P", plan::kNewRowTopP);
  constant("NEW_ROW_TOP_K", plan::kNewRowTopK);
  constant("NEW_ROW_MIN_P", plan::kNewRowMinP);
  constant("NEW_ROW_PRESENCE_PENALTY", plan::kNewRowPresencePenalty);
  constant("NEW_ROW_FREQUENCY_PENALTY", plan::kNewRowFrequencyPenalty);
  constant("NEW_ROW_REPETITION_PENALTY", plan::kNewRowRepetitionPenalty);
  constant("NEW_ROW_SEED_LOW", plan::kNewRowSeedLow);
  constant("NEW_ROW_SEED_HIGH", plan::kNewRowSeedHigh);
  constant("NEW_ROW_PROMPT_LEN", plan::kNewRowPromptLen);
  constant("NEW_ROW_MIN_TOKENS", plan::kNewRowMinTokens);
  constant("NEW_ROW_NUM_LOGPROBS", plan::kNewRowNumLogprobs);
  constant("NEW_ROW_SCORE_START", plan::kNewRowScoreStart);
  constant("NEW_ROW_KNOWN_IDS", plan::kNewRowKnownIds);
  constant("NEW_ROW_LOGIT_BIAS", plan::kNewRowLogitBias);
  constant("NEW_ROW_ALLOWED_IDS", plan::kNewRowAllowedIds);
  constant("NEW_ROW_MASKED_IDS", plan::kNewRowMaskedIds);
  constant("SAMPLE_GREEDY", plan::kSampleGreedy);
  constant("SAMPLE_PENALTIES", plan::kSamplePenalties);
  constant("SAMPLE_FILTER", plan::kSampleFilter);
  constant("SAMPLE_LOGPROBS", plan::kSampleLogprobs);
  constant("SAMPLE_LOGIT_BIAS", plan::kSampleLogitBias);
  constant("SAMPLE_ALLOWED", plan::kSampleAllowed);
  constant("SAMPLE_MIN_TOKENS", plan::kSampleMinTokens);
  constant("SAMPLE_SCORE", plan::kSampleScore);
  constant("MAX_MASKED_IDS", plan::kMaxMaskedIds);
}

}  // namespace runtime::bindings
