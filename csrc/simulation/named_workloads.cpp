#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/nearest.h"
#include "runtime/error.h"
#include "runtime/simulation.h"

namespace runtime::simulation {
namespace {

constexpr Lengths Lognormal(double mu, double sigma) {
  return {Lengths::Kind::kLognormal, mu, sigma};
}

NamedWorkload Named(std::string name, const Lengths& prompt, const Lengths& output) {
  NamedWorkload named{.name = std::move(name), .workload = {}, .has_rate = false};
  named.workload.prompt = prompt;
  named.workload.output = output;
  return named;
}

NamedWorkload AzureConversation() {
  NamedWorkload named = Named("azure-conversation", Lognormal(6.63, 0.985), Lognormal(5.02, 0.86));
  named.workload.rate = 5.5;
  named.workload.cv = 1.09;
  named.has_rate = true;
  return named;
}

NamedWorkload AzureCode() {
  NamedWorkload named = Named("azure-code", Lognormal(7.00, 1.36), Lognormal(2.79, 0.85));
  named.workload.cv = 13.0;
  return named;
}

// 37 % of its prompt tokens are found in the cache; here 16 prefixes cover that share of every
// prompt.
NamedWorkload Mooncake() {
  NamedWorkload named = Named("mooncake", Lognormal(8.74, 1.20), Lognormal(5.34, 1.36));
  named.workload.prefixes.num_trees = 16;
  named.workload.prefixes.prompt_share = 0.37;
  return named;
}

// Two numbers with a comma between.
std::optional<std::pair<double, double>> TwoNumbers(std::string_view text) {
  const std::size_t comma = text.find(',');
  if (comma == std::string_view::npos) return std::nullopt;
  std::pair<double, double> numbers;
  const auto read = [](std::string_view digits, double& number) {
    const char* end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, number);
    return error == std::errc{} && stop == end;
  };
  const bool both =
      read(text.substr(0, comma), numbers.first) && read(text.substr(comma + 1), numbers.second);
  return both ? std::optional(numbers) : std::nullopt;
}

[[noreturn]] void FailUnknown(const std::string& name) {
  std::vector<std::string_view> known;
  std::string all;
  for (const NamedWorkload& workload : NamedWorkloads()) {
    known.push_back(workload.name);
    all += workload.name + ", ";
  }
  throw ConfigError("unknown workload '" + name + "'" + DidYouMean(name, known),
                    "one of " + all + "fixed:IN,OUT or uniform:LEAST,LARGEST");
}

}  // namespace

std::span<const NamedWorkload> NamedWorkloads() {
  constexpr Lengths kUniform{Lengths::Kind::kUniform, 100.0, 1024.0};
  constexpr auto kMean = [](double mean) {
    return Lengths{Lengths::Kind::kExponential, mean, 0.0};
  };
  static const std::array<NamedWorkload, 6> workloads{
      AzureConversation(),
      AzureCode(),
      Named("arxiv", Lognormal(7.72, 0.755), Lognormal(5.19, 0.80)),
      Mooncake(),
      Named("sharegpt", kMean(202.0), kMean(179.0)),  // only the means are published
      Named("uniform", kUniform, kUniform)};
  return workloads;
}

NamedWorkload FindWorkload(const std::string& name) {
  for (const NamedWorkload& workload : NamedWorkloads()) {
    if (workload.name == name) return workload;
  }
  const std::string kind = name.substr(0, name.find(':'));
  const auto numbers =
      TwoNumbers(std::string_view(name).substr(std::min(kind.size() + 1, name.size())));
  if (numbers && kind == "fixed") {
    return Named(name, {Lengths::Kind::kFixed, numbers->first, 0.0},
                 {Lengths::Kind::kFixed, numbers->second, 0.0});
  }
  if (!numbers || kind != "uniform") FailUnknown(name);
  const Lengths lengths{Lengths::Kind::kUniform, numbers->first, numbers->second};
  return Named(name, lengths, lengths);
}

}  // namespace runtime::simulation
