#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "bench/commands.h"
#include "bench/output.h"
#include "bench/pairing.h"
#include "bench/ratio.h"
#include "common/nearest.h"

namespace runtime::bench {
namespace {

struct Options {
  std::string first, second;
  std::vector<std::string> figures;  // empty: all
  double confidence = 0.95;
  std::optional<double> fail_below;
  bool json = false;
};

bool Parse(const Words& words, Options& options) {
  Flags flags(
      "runtime-bench compare",
      "Pairs the rows of two result files. A ratio above 1 says that B is better: less time "
      "or a higher rate. Rows with repeated runs have a confidence interval.");
  flags.Operand("A", "file of JSON lines: the figures to compare with", options.first);
  flags.Operand("B", "file of JSON lines", options.second);
  flags.Value("figure", "NAME,NAME", "only these, such as tpot_ms", options.figures);
  flags.Value("confidence", "SHARE", "of the intervals", options.confidence);
  flags.Value("fail-below", "RATIO",
              "exit with 1 if a ratio is lower; where there is an interval, if all of it is",
              options.fail_below);
  flags.Switch("json", "pairs as JSON lines", options.json);
  return flags.Parse(words);
}

void Validate(const Options& options) {
  if (!(options.confidence > 0.0 && options.confidence < 1.0)) {
    throw UsageError("--confidence=" + Format("%g", options.confidence) +
                     ": must be above 0 and below 1");
  }
  if (options.fail_below && !(*options.fail_below > 0.0)) {
    throw UsageError("--fail-below=" + Format("%g", *options.fail_below) + ": must be above 0");
  }
}

// One figure of a pair.
struct Compared {
  std::string label, figure;
  std::vector<double> a, b;
  std::optional<Ratio> ratio;  // none: a value is not above 0

  // The best ratio that the runs leave open.
  double upper() const { return ratio->interval ? ratio->interval->high : ratio->value; }
};

bool IsWanted(const Options& options, const std::string& figure) {
  return options.figures.empty() || std::ranges::count(options.figures, figure) > 0;
}

bool IsPositive(double value) { return value > 0.0; }

void CompareFigures(const Options& options, const Measurement& a, const Measurement& b,
                    std::vector<Compared>& found) {
  for (const auto& [figure, values] : a.figures) {
    const std::vector<double>* others = b.Find(figure);
    if (others == nullptr || !IsWanted(options, figure)) continue;
    Compared compared{a.label, figure, values, *others, std::nullopt};
    if (std::ranges::all_of(values, IsPositive) && std::ranges::all_of(*others, IsPositive)) {
      const bool higher = BetterOf(figure.substr(0, figure.find('.'))) == Better::kHigher;
      compared.ratio = CompareRuns(values, *others, higher, options.confidence);
    }
    found.push_back(std::move(compared));
  }
}

// What a column shows of repeated runs.
double Center(const std::vector<double>& values) {
  return std::ranges::all_of(values, IsPositive) ? GeometricMean(values) : values.front();
}

Json::Object RowOf(const Compared& c) {
  Json::Object row{{"measurement", Json(c.label)},
                   {"figure", Json(c.figure)},
                   {"a", Json(Center(c.a))},
                   {"b", Json(Center(c.b))},
                   {"num_a", Json(static_cast<std::int64_t>(c.a.size()))},
                   {"num_b", Json(static_cast<std::int64_t>(c.b.size()))}};
  row.emplace_back("ratio", c.ratio ? Json(c.ratio->value) : Json());
  const bool has_interval = c.ratio && c.ratio->interval;
  row.emplace_back("low", has_interval ? Json(c.ratio->interval->low) : Json());
  row.emplace_back("high", has_interval ? Json(c.ratio->interval->high) : Json());
  return row;
}

std::string IntervalText(const Compared& c) {
  if (!c.ratio) return "not above 0";
  if (!c.ratio->interval) return "single run";
  return Format("%.3f", c.ratio->interval->low) + " .. " + Format("%.3f", c.ratio->interval->high);
}

std::string TextOf(const std::vector<Compared>& all, double confidence) {
  Table table({"measurement", "figure", "A", "B", "ratio", Format("%g %%", 100 * confidence)});
  for (const Compared& c : all) {
    table.Add({c.label, c.figure, Format("%.5g", Center(c.a)), Format("%.5g", Center(c.b)),
               c.ratio ? Format("%.3f", c.ratio->value) : "-", IntervalText(c)});
  }
  return table.Text();
}

void Write(const Options& options, const std::vector<Compared>& all) {
  if (!options.json) return Print(TextOf(all, options.confidence));
  for (const Compared& compared : all) PrintRow(RowOf(compared));
}

void Say(const std::string& what) { std::fputs(("runtime-bench: " + what + "\n").c_str(), stderr); }

[[noreturn]] void FailNothing(const Options& options, const Pairs& pairs) {
  if (pairs.both.empty()) {
    throw ConfigError("no row of " + options.first + " has a partner in " + options.second + "; " +
                      pairs.alone.front());
  }
  throw ConfigError("the rows of " + options.first + " and " + options.second +
                        " that belong together have no figure in common",
                    options.figures.empty() ? "" : "leave out --figure to see all");
}

int CountBelow(const Options& options, const std::vector<Compared>& all) {
  int num_below = 0;
  for (const Compared& c : all) {
    if (!options.fail_below || !c.ratio || c.upper() >= *options.fail_below) continue;
    ++num_below;
    Say(c.label + ": " + c.figure + " is " + Format("%.3f", c.ratio->value) +
        " times as good, below " + Format("%g", *options.fail_below));
  }
  return num_below;
}

}  // namespace

int RunCompare(const Words& words) {
  Options options;
  if (!Parse(words, options)) return 0;
  Validate(options);
  const std::vector<Measurement> a = ReadMeasurements(options.first);
  const std::vector<Measurement> b = ReadMeasurements(options.second);
  const Pairs pairs = PairUp(a, b);
  std::vector<Compared> all;
  for (const auto& [first, second] : pairs.both) CompareFigures(options, *first, *second, all);
  if (all.empty()) FailNothing(options, pairs);
  Write(options, all);
  for (const std::string& alone : pairs.alone) Say("left out: " + alone);
  return CountBelow(options, all) > 0 ? kExitFound : 0;
}

}  // namespace runtime::bench
