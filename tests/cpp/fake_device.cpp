#include "fake_device.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>

#include "runtime/step_plan.h"

namespace runtime::testing {

namespace plan = step_plan;

namespace {

void Need(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error("the plan cannot be executed: " + what);
}

constexpr std::uint64_t kGarbage = 0x6172626167657321;

std::uint64_t Mix(std::uint64_t x) {  // the finaliser of splitmix64
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t SlotValue(TokenId token, std::int32_t position) {
  return Mix(static_cast<std::uint64_t>(token) << 32 | static_cast<std::uint32_t>(position));
}

TokenId ToToken(std::uint64_t digest, std::uint64_t salt, std::int32_t vocab_size) {
  return static_cast<TokenId>(Mix(digest ^ Mix(salt + 1)) % static_cast<std::uint64_t>(vocab_size));
}

std::span<const std::int32_t> Section(std::span<const std::int32_t> words, std::int32_t header,
                                      std::int32_t words_each) {
  const std::int32_t offset = words[header];
  const std::int32_t size = words[header + 1] * words_each;
  Need(offset >= plan::kHeaderWords && size >= 0 && offset + size <= words[plan::kHeaderNumWords],
       "a section lies outside the plan");
  return words.subspan(offset, size);
}

}  // namespace

TokenId SampleAfter(std::span<const TokenId> context, std::uint64_t salt, std::int32_t vocab_size) {
  std::uint64_t digest = 0;
  for (std::size_t i = 0; i < context.size(); ++i) {
    digest += SlotValue(context[i], static_cast<std::int32_t>(i));
  }
  return ToToken(digest, salt, vocab_size);
}

std::uint64_t SampleSalt(std::int64_t seed, bool sees_ids, std::span<const TokenId> ids) {
  std::uint64_t salt = static_cast<std::uint64_t>(seed);
  if (!sees_ids) return salt;
  for (const TokenId id : ids) salt = Mix(salt * 31 + static_cast<std::uint64_t>(id));
  return salt;
}

FakeDevice::FakeDevice(const SchedulerConfig& config, std::int32_t num_blocks)
    : config_(config), num_blocks_(num_blocks), rows_(config.max_num_seqs) {
  kv_.resize((static_cast<std::size_t>(num_blocks) + 1) * config.block_size);
  host_kv_.resize((static_cast<std::size_t>(config.num_host_blocks) + 1) * config.block_size);
}

std::span<std::uint64_t> FakeDevice::DeviceBlock(BlockId block) {
  Need(block >= 1 && block <= num_blocks_, "a copy names a block that is not on the device");
  const auto size = static_cast<std::size_t>(config_.block_size);
  return std::span(kv_).subspan(static_cast<std::size_t>(block) * size, size);
}

std::span<std::uint64_t> FakeDevice::HostBlock(BlockId block) {
  Need(block >= 1 && block <= config_.num_host_blocks, "a copy names a block that is not there");
  const auto size = static_cast<std::size_t>(config_.block_size);
  return std::span(host_kv_).subspan(static_cast<std::size_t>(block) * size, size);
}

void FakeDevice::StartCopies(std::span<const std::int32_t> words) {
  const auto entries = Section(words, plan::kHeaderCopies, plan::kCopyWords);
  for (std::size_t at = 0; at < entries.size(); at += plan::kCopyWords) {
    const bool to_host = entries[at] == plan::kCopyToHost;
    Need(to_host || entries[at] == plan::kCopyFromHost, "no such kind of copy");
    Copy copy{to_host, entries[at + (to_host ? 1 : 2)], entries[at + (to_host ? 2 : 1)], {}};
    const auto source = to_host ? DeviceBlock(copy.device) : HostBlock(copy.host);
    Need(std::ranges::count(source, kGarbage) == 0, "a copy reads what is being copied");
    copy.content.assign(source.begin(), source.end());
    std::ranges::fill(to_host ? HostBlock(copy.host) : DeviceBlock(copy.device), kGarbage);
    copies_[words[plan::kHeaderStep]].push_back(std::move(copy));
  }
}

void FakeDevice::FinishCopies(std::int32_t step) {
  for (const Copy& copy : copies_.at(step)) {
    const auto source = copy.to_host ? DeviceBlock(copy.device) : HostBlock(copy.host);
    const auto target = copy.to_host ? HostBlock(copy.host) : DeviceBlock(copy.device);
    Need(std::ranges::equal(source, copy.content), "the source of a copy changed meanwhile");
    Need(std::ranges::count(target, kGarbage) == static_cast<std::ptrdiff_t>(target.size()),
         "the destination of a copy was used meanwhile");
    std::ranges::copy(copy.content, target.begin());
  }
  copies_.erase(step);
}

std::vector<TokenId> FakeDevice::Execute(std::span<const std::int32_t> words) {
  CheckHeader(words);
  ApplyNewRows(words);
  ApplyFreedRows(words);  // the other order must do as well: no row is in both
  ApplyNewBlocks(words);
  const auto rows = Section(words, plan::kHeaderRows, plan::kRowWords);
  auto tokens = Section(words, plan::kHeaderTokens, 1);
  std::set<std::int32_t> seen;
  std::vector<TokenId> sampled;
  std::int32_t max_len = 0;
  for (std::size_t i = 0; i * plan::kRowWords < rows.size(); ++i) {
    const auto entry = rows.subspan(i * plan::kRowWords, plan::kRowWords);
    const std::int32_t num_computed = entry[1], num_scheduled = entry[2], flags = entry[3];
    Need(entry[0] >= 0 && entry[0] < config_.max_num_seqs, "no such row");
    Need(seen.insert(entry[0]).second, "a row stands in it twice");
    Row& row = rows_[entry[0]];
    CheckRow(row, num_computed, num_scheduled, flags,
             static_cast<std::int32_t>(i) < words[plan::kHeaderNumDecodeRows]);
    const bool from_host = (flags & plan::kRowHostTokens) != 0;
    for (std::int32_t j = 0; j < num_scheduled; ++j) {
      WriteKv(row, num_computed + j, from_host ? tokens[j] : row.last_token);
      if ((flags & plan::kRowScore) != 0) scored_[entry[0]].push_back(tokens[j]);
    }
    if (from_host) tokens = tokens.subspan(num_scheduled);
    row.num_computed = num_computed + num_scheduled;
    max_len = std::max(max_len, row.num_computed);
    sampled.push_back((flags & plan::kRowSample) != 0 ? Sample(row) : -1);
  }
  Need(tokens.empty(), "ids are left over");
  Need(max_len == words[plan::kHeaderMaxLen], "max_len is wrong");
  return sampled;
}

void FakeDevice::CheckHeader(std::span<const std::int32_t> words) const {
  Need(words[plan::kHeaderVersion] == plan::kVersion, "its version is unknown");
  Need(words[plan::kHeaderStep] > last_step_, "steps do not rise");
  const std::int32_t num_rows = words[plan::kHeaderNumRows];
  const std::int32_t num_copies = words[plan::kHeaderCopies + 1];
  Need(num_rows == words[plan::kHeaderRows + 1], "rows are miscounted");
  Need(num_rows > 0 || num_copies > 0, "it does nothing");
  for (const auto section :
       {plan::kHeaderNewBlocks, plan::kHeaderNewRows, plan::kHeaderFreedRows}) {
    Need(num_rows > 0 || words[section + 1] == 0, "a plan without rows holds copies alone");
  }
  std::int32_t num_tokens = 0;
  const auto rows = Section(words, plan::kHeaderRows, plan::kRowWords);
  for (std::size_t i = 2; i < rows.size(); i += plan::kRowWords) num_tokens += rows[i];
  Need(num_tokens == words[plan::kHeaderNumTokens], "tokens are miscounted");
  Need(num_tokens <= config_.max_num_batched_tokens, "it exceeds the token budget");
}

void FakeDevice::ApplyFreedRows(std::span<const std::int32_t> words) {
  for (const std::int32_t row : Section(words, plan::kHeaderFreedRows, 1)) {
    Need(rows_[row].is_live, "a row is freed that is free");
    rows_[row] = {};
  }
}

void FakeDevice::ApplyNewRows(std::span<const std::int32_t> words) {
  const auto records = Section(words, plan::kHeaderNewRows, plan::kNewRowWords);
  for (std::size_t at = 0; at < records.size(); at += plan::kNewRowWords) {
    const auto record = records.subspan(at, plan::kNewRowWords);
    Row row;
    row.is_live = true;
    row.epoch = record[plan::kNewRowEpoch];
    row.flags = record[plan::kNewRowFlags];
    row.seed = static_cast<std::int64_t>(record[plan::kNewRowSeedHigh]) << 32 |
               static_cast<std::uint32_t>(record[plan::kNewRowSeedLow]);
    row.prompt_len = record[plan::kNewRowPromptLen];
    const auto known =
        words.subspan(record[plan::kNewRowKnownIds], record[plan::kNewRowKnownIds + 1]);
    row.known_ids.assign(known.begin(), known.end());
    rows_[record[plan::kNewRowRow]] = row;
    scored_.erase(record[plan::kNewRowRow]);
  }
}

void FakeDevice::ApplyNewBlocks(std::span<const std::int32_t> words) {
  const auto entries = Section(words, plan::kHeaderNewBlocks, plan::kNewBlockWords);
  for (std::size_t at = 0; at < entries.size(); at += plan::kNewBlockWords) {
    Row& row = rows_[entries[at]];
    Need(row.is_live, "a block goes to a free row");
    Need(entries[at + 1] == static_cast<std::int32_t>(row.table.size()), "a table has a hole");
    Need(entries[at + 2] >= 1 && entries[at + 2] <= num_blocks_, "no such block");
    row.table.push_back(entries[at + 2]);
  }
}

void FakeDevice::CheckRow(const Row& row, std::int32_t num_computed, std::int32_t num_scheduled,
                          std::int32_t flags, bool is_decode) const {
  Need(row.is_live, "a free row is scheduled");
  Need(num_scheduled >= 1, "a row without tokens");
  Need(row.num_computed == -1 || row.num_computed == num_computed, "a row jumps");
  const auto num_blocks =
      (num_computed + num_scheduled + config_.block_size - 1) / config_.block_size;
  Need(num_blocks == static_cast<std::int32_t>(row.table.size()),
       "a table does not fit its tokens");
  Need(is_decode == ((flags & plan::kRowHostTokens) == 0), "decode rows come first");
  Need(!is_decode || (num_scheduled == 1 && row.last_token >= 0), "a decode row without a token");
  Need(num_computed + num_scheduled <= config_.max_model_len, "a row is longer than the model");
}

void FakeDevice::WriteKv(const Row& row, std::int32_t position, TokenId token) {
  RequireUnshared(row, row.table[position / config_.block_size]);
  Slot(row, position) = SlotValue(token, position);
}

void FakeDevice::RequireUnshared(const Row& row, BlockId block) const {
  for (const Row& other : rows_) {
    const bool shares = other.is_live && std::ranges::count(other.table, block) > 0;
    Need(!shares || &other == &row, "a shared block is written");
  }
}

std::uint64_t& FakeDevice::Slot(const Row& row, std::int32_t position) {
  const auto block = static_cast<std::size_t>(row.table[position / config_.block_size]);
  return kv_[block * config_.block_size + position % config_.block_size];
}

TokenId FakeDevice::Sample(Row& row) {
  std::uint64_t digest = 0;
  for (std::int32_t i = 0; i < row.num_computed; ++i) {
    Need(Slot(row, i) != kGarbage, "a block is read while it is copied in");
    digest += Slot(row, i);
  }
  const bool sees_ids = (row.flags & plan::kSamplePenalties) != 0;
  row.last_token =
      ToToken(digest, SampleSalt(row.seed, sees_ids, row.known_ids), config_.vocab_size);
  if (sees_ids) row.known_ids.push_back(row.last_token);
  return row.last_token;
}

}  // namespace runtime::testing
