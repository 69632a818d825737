#include "simulation/synthesis.h"

#include <algorithm>

#include "runtime/step_plan.h"
#include "simulation/random.h"

namespace runtime::simulation {
namespace {

namespace plan = step_plan;

constexpr std::int32_t kIdBits = 15;
constexpr std::int32_t kIdsPerWord = 4;
static_assert(kVocabSize == 1 << kIdBits);

TokenId ToToken(std::uint64_t bits) {
  return std::max(static_cast<TokenId>(bits & (kVocabSize - 1)), kEos + 1);
}

// Fills `tokens`, positions 0 .. of the sequence `key`.
void Fill(std::span<TokenId> tokens, std::uint64_t key) {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i % kIdsPerWord == 0) word = Mix(key + i);
    tokens[i] = ToToken(word);
    word >>= kIdBits;
  }
}

// The node of a tree's level on the path to a leaf.
std::int64_t Node(const SharedPrefixes& shape, std::int64_t leaf, std::int32_t level) {
  for (std::int32_t i = shape.depth - 1; i > level; --i) leaf /= shape.branching;
  return leaf;
}

std::uint64_t Key(std::uint64_t kind, std::int64_t id) {
  return Mix(Mix(kind) + static_cast<std::uint64_t>(id));
}

}  // namespace

std::vector<TokenId> PromptWriter::Write(const SimulatedRequest& request,
                                         std::int64_t number) const {
  std::vector<TokenId> ids(static_cast<std::size_t>(request.prompt_len));
  const std::span<TokenId> all(ids);
  const std::int32_t shared = request.prefix_id >= 0 ? request.prefix_len : 0;
  const std::int32_t segment_len = shape_.depth > 1 ? shape_.segment_len : shared;
  for (std::int32_t level = 0, at = 0; at < shared; ++level, at += segment_len) {
    const auto count = static_cast<std::size_t>(std::min(segment_len, shared - at));
    Fill(all.subspan(static_cast<std::size_t>(at), count),
         Key(1 + static_cast<std::uint64_t>(level), Node(shape_, request.prefix_id, level)));
  }
  Fill(all.subspan(static_cast<std::size_t>(shared)), Key(0, number));
  return ids;
}

std::int64_t SeedOf(const SimulatedRequest& request, std::int64_t number) {
  const auto salt = static_cast<std::uint32_t>(Mix(static_cast<std::uint64_t>(number)));
  const std::int64_t end = std::int64_t{request.prompt_len} + request.output_len;
  return static_cast<std::int64_t>(std::uint64_t{salt} << 32) | end;
}

std::int32_t Executor::Sample(std::span<const std::int32_t> words, std::vector<TokenId>& tokens) {
  const auto at = [&](std::int32_t section) {
    return &words[static_cast<std::size_t>(words[static_cast<std::size_t>(section)])];
  };
  const std::int32_t* record = at(plan::kHeaderNewRows);
  for (std::int32_t i = words[plan::kHeaderNewRows + 1]; i > 0; --i, record += plan::kNewRowWords) {
    rows_[static_cast<std::size_t>(record[plan::kNewRowRow])] = {
        record[plan::kNewRowSeedLow], static_cast<std::uint32_t>(record[plan::kNewRowSeedHigh])};
  }
  const std::int32_t* row = at(plan::kHeaderRows);
  tokens.resize(static_cast<std::size_t>(words[plan::kHeaderNumRows]));
  std::int32_t num_sampled = 0;
  for (TokenId& token : tokens) {
    const Row& known = rows_[static_cast<std::size_t>(row[0])];
    const std::int32_t position = row[1] + row[2];
    const bool samples = (row[3] & plan::kRowSample) != 0;
    const auto salted = std::uint64_t{known.salt} + static_cast<std::uint64_t>(position);
    token = !samples ? -1 : position + 1 >= known.end ? kEos : ToToken(salted);
    num_sampled += samples;
    row += plan::kRowWords;
  }
  return num_sampled;
}

}  // namespace runtime::simulation
