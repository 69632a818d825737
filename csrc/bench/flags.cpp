#include "bench/flags.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <string_view>

#include "bench/output.h"
#include "common/nearest.h"
#include "common/text.h"

namespace runtime::bench {
namespace {

[[noreturn]] void FailValue(const std::string& name, const std::string& text,
                            const std::string& limit) {
  throw UsageError(name + "=" + text + ": must be " + limit);
}

template <typename N>
N ParsedNumber(const std::string& name, const std::string& text) {
  N value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if constexpr (std::integral<N>) {
    if (error == std::errc{} && stop == end && !text.empty()) return value;
    FailValue(name, text,
              "an integer from " + Text(std::numeric_limits<N>::min()) + " to " +
                  Text(std::numeric_limits<N>::max()));
  } else {
    if (error == std::errc{} && stop == end && !text.empty() && !std::isnan(value)) return value;
    FailValue(name, text, "a number");
  }
}

void Assign(const std::string&, const std::string& text, std::string& target) { target = text; }

template <typename N>
  requires std::is_arithmetic_v<N>
void Assign(const std::string& name, const std::string& text, N& target) {
  target = ParsedNumber<N>(name, text);
}

template <typename T>
void Assign(const std::string& name, const std::string& text, std::optional<T>& target) {
  T value{};
  Assign(name, text, value);
  target = std::move(value);
}

template <typename T>
void Assign(const std::string& name, const std::string& text, std::vector<T>& target) {
  target.clear();
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t comma = std::min(text.find(',', start), text.size());
    Assign(name, text.substr(start, comma - start), target.emplace_back());
    start = comma + 1;
  }
}

template <typename T>
std::string Shown(const T& value) {
  return Text(value);
}

template <typename T>
std::string Shown(const std::optional<T>&) {
  return {};
}

template <typename T>
std::string Shown(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ",") + Text(value);
  return text;
}

std::string Line(const std::string& left, const std::string& help) {
  constexpr std::size_t kColumn = 26;
  const std::size_t gap = left.size() + 2 < kColumn ? kColumn - left.size() : 2;
  return "  " + left + std::string(gap, ' ') + help + "\n";
}

}  // namespace

void Flags::Switch(const std::string& name, const std::string& help, bool& target,
                   bool can_be_off) {
  flags_.push_back({"--" + name, "", help, [&target](const std::string&) { target = true; }});
  if (!can_be_off) return;
  flags_.push_back(
      {"--no-" + name, "", "do not", [&target](const std::string&) { target = false; }});
}

template <typename T>
void Flags::Value(const std::string& name, const std::string& metavar, const std::string& help,
                  T& target) {
  const std::string flag = "--" + name, shown = Shown(target);
  flags_.push_back({flag, metavar, shown.empty() ? help : help + " (default: " + shown + ")",
                    [flag, &target](const std::string& text) { Assign(flag, text, target); }});
}

template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::string&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::int32_t&);
template void Flags::Value(const std::string&, const std::string&, const std::string&, double&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::optional<std::string>&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::optional<std::int32_t>&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::optional<std::int64_t>&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::optional<double>&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::vector<std::int32_t>&);
template void Flags::Value(const std::string&, const std::string&, const std::string&,
                           std::vector<std::string>&);

void Flags::Operand(const std::string& metavar, const std::string& help, std::string& target,
                    bool is_required) {
  operands_.push_back({metavar, help, &target, is_required});
}

bool Flags::Parse(const Words& words) const {
  std::size_t num_operands = 0;
  for (std::size_t at = 0; at < words.size();) {
    const std::string& word = words[at];
    if (word == "-h" || word == "--help") return Print(Help()), false;
    if (word.size() > 1 && word[0] == '-') {
      at = TakeFlag(words, at);
      continue;
    }
    if (num_operands == operands_.size()) throw UsageError("unknown argument '" + word + "'");
    *operands_[num_operands++].target = words[at++];
  }
  if (num_operands < operands_.size() && operands_[num_operands].is_required) {
    throw UsageError("no " + operands_[num_operands].metavar + " was given");
  }
  return true;
}

// Returns where the next word is.
std::size_t Flags::TakeFlag(const Words& words, std::size_t at) const {
  const std::string& word = words[at];
  const std::size_t equals = std::min(word.find('='), word.size());
  const std::string name = word.substr(0, equals);
  const auto flag = std::ranges::find(flags_, name, &Flag::name);
  if (flag == flags_.end()) FailUnknown(name);
  if (flag->metavar.empty()) {
    if (equals < word.size()) throw UsageError(name + " takes no value");
    flag->set("");
    return at + 1;
  }
  if (equals < word.size()) return flag->set(word.substr(equals + 1)), at + 1;
  if (at + 1 == words.size()) throw UsageError(name + " needs a value: " + flag->metavar);
  flag->set(words[at + 1]);
  return at + 2;
}

void Flags::FailUnknown(const std::string& name) const {
  std::vector<std::string_view> known{"--help"};
  for (const Flag& flag : flags_) known.push_back(flag.name);
  throw UsageError("unknown flag '" + name + "'" + DidYouMean(name, known));
}

std::string Flags::Help() const {
  std::string text = "usage: " + program_ + " [flags]";
  for (const Position& operand : operands_) {
    text += operand.is_required ? " " + operand.metavar : " [" + operand.metavar + "]";
  }
  text += "\n\n" + summary_ + "\n\n";
  for (const Position& operand : operands_) text += Line(operand.metavar, operand.help);
  for (const Flag& flag : flags_) {
    text += Line(flag.name + (flag.metavar.empty() ? "" : " " + flag.metavar), flag.help);
  }
  return text;
}

}  // namespace runtime::bench
