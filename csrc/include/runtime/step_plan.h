// StepPlan, version 1: what one step does, in one contiguous buffer of int32 words. Floats are
// bit-cast; offsets are words from the buffer's start. This file is the layout's home.
//
// header | rows | tokens | new_blocks | new_rows (records, then their lists) | copies | freed_rows
#pragma once

#include <cstdint>

namespace runtime::step_plan {

inline constexpr std::int32_t kVersion = 1;
inline constexpr std::int32_t kHeaderWords = 24;

// Words of the header; a section is an (offset, count) pair.
enum Header : std::int32_t {
  kHeaderVersion = 0,
  kHeaderStep = 1,
  kHeaderHashLow = 2,
  kHeaderHashHigh = 3,
  kHeaderNumRows = 4,
  kHeaderNumDecodeRows = 5,
  kHeaderNumTokens = 6,
  kHeaderMaxLen = 7,
  kHeaderRows = 8,
  kHeaderTokens = 10,
  kHeaderNewBlocks = 12,
  kHeaderNewRows = 14,
  kHeaderCopies = 16,
  kHeaderFreedRows = 18,
  kHeaderNumWords = 20,
  kHeaderFlags = 21,
  kHeaderRepeatedTokens = 22,  // of KV that requests hold together, once for each but one of them
};

// Flags of the step.
inline constexpr std::int32_t kStepGreedyOnly =
    1;                                          // every sampled row needs only its largest logit
inline constexpr std::int32_t kStepMasked = 2;  // some sampled row needs a mask, see MaskedRow

// rows: row, num_computed, num_scheduled, flags; decode rows (those without kRowHostTokens) first.
inline constexpr std::int32_t kRowWords = 4;
inline constexpr std::int32_t kRowSample = 1;  // the row's last token gets sampled
inline constexpr std::int32_t kRowHostTokens =
    2;                                        // ids are in `tokens`; else the device's last one
inline constexpr std::int32_t kRowScore = 4;  // logprobs of the row's known tokens are wanted

// new_blocks: row, index in the row's table, block id.
inline constexpr std::int32_t kNewBlockWords = 3;

// new_rows: a row is written whole when a request enters it.
inline constexpr std::int32_t kNewRowWords = 32;
enum NewRow : std::int32_t {
  kNewRowRow = 0,
  kNewRowEpoch = 1,
  kNewRowFlags = 2,
  kNewRowTemperature = 3,
  kNewRowTopP = 4,
  kNewRowTopK = 5,
  kNewRowMinP = 6,
  kNewRowPresencePenalty = 7,
  kNewRowFrequencyPenalty = 8,
  kNewRowRepetitionPenalty = 9,
  kNewRowSeedLow = 10,
  kNewRowSeedHigh = 11,
  kNewRowPromptLen = 12,
  kNewRowMinTokens = 13,
  kNewRowNumLogprobs = 14,  // -1: off
  kNewRowScoreStart = 15,   // -1: off
  kNewRowKnownIds = 16,     // (offset, count), as the three that follow
  kNewRowLogitBias = 18,    // pairs of id and value
  kNewRowAllowedIds = 20,
  kNewRowMaskedIds = 22,  // not before min_tokens: eos and stop ids
};
inline constexpr std::int32_t kSampleGreedy = 1;
inline constexpr std::int32_t kSamplePenalties = 2;
inline constexpr std::int32_t kSampleFilter = 4;
inline constexpr std::int32_t kSampleLogprobs = 8;
inline constexpr std::int32_t kSampleLogitBias = 16;
inline constexpr std::int32_t kSampleAllowed = 32;
inline constexpr std::int32_t kSampleMinTokens = 64;
inline constexpr std::int32_t kSampleScore = 128;

// copies: kind, source block, destination block. They touch nothing that a step in flight reads or
// writes, so they may start at once and end at any time; see Scheduler::TransferDone. A plan
// without rows carries copies alone.
inline constexpr std::int32_t kCopyWords = 3;
inline constexpr std::int32_t kCopyToHost = 1;    // device block to host block
inline constexpr std::int32_t kCopyFromHost = 2;  // host block to device block

inline constexpr std::int32_t kMaxMaskedIds = 64;

}  // namespace runtime::step_plan
