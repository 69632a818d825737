// Rows of two result files, side by side. A row is one measurement: fields that say what was run
// (docs/runtime_bench.md lists them), figures, and where and when.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/json.h"

namespace runtime::bench {

// Whether more of a figure is better, as its name's end says: rates end in tok_s, tb_s, per_s or
// per_cpu_s, times in _s, _ms, _us or _ns.
enum class Better { kLower, kHigher, kNeither };
Better BetterOf(std::string_view figure);

// What was measured, and what was found: the values of one figure are repeated runs.
struct Measurement {
  std::string where;  // "a.jsonl, line 3"
  Json setting;       // what was run
  Json place;         // engine and device
  Json commit;
  std::string label;  // the setting in few words
  std::vector<std::pair<std::string, std::vector<double>>> figures;

  const std::vector<double>* Find(std::string_view figure) const;
};

// The measurements of a file of JSON lines, or of an array of rows. Rows that are alike but for
// their figures are repeated runs if they are of one commit; of several commits the last one's
// count. Throws ConfigError with line and column.
std::vector<Measurement> ReadMeasurements(const std::string& path);

struct Pairs {
  std::vector<std::pair<const Measurement*, const Measurement*>> both;
  std::vector<std::string> alone;  // rows that have no partner, or several, each with why
};

// Two rows belong together when they have the same scenario or op, no setting that both have
// differs, and nothing else fits better: the partner shares more settings, then engine and device.
Pairs PairUp(const std::vector<Measurement>& a, const std::vector<Measurement>& b);

}  // namespace runtime::bench
