#include "bench/pairing.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>

#include "bench/output.h"
#include "runtime/error.h"

namespace runtime::bench {
namespace {

// What was run. The first ones name a row in few words; a row without scenario and op is refused.
constexpr std::string_view kSettings[] = {
    "model",
    "scenario",
    "op",
    "case",
    "tp",
    "bytes",
    "kernel_cache",
    "batch",
    "in",
    "out",
    "context",
    "dtype",
    "counted",
    "deterministic",
    "ranks",
    "workload",
    "rate",
    "cv",
    "concurrency",
    "queue_depth",
    "num_requests",
    "policy",
    "admission",
    "admission_reserve",
    "target_itl_ms",
    "eviction",
    "cpu_kv_tokens",
    "num_replicas",
    "router",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "max_tokens",
    "step_times",
};
constexpr std::size_t kNumLabels = 7;

// Two rows of one pair have none or both of these.
constexpr std::array<std::string_view, 3> kNeeded{"scenario", "op", "deterministic"};

// Who and where: two rows may differ in them, but those that agree are the better pair.
constexpr std::array<std::string_view, 2> kPlaces{"engine", "device"};

bool IsSetting(std::string_view name) { return std::ranges::count(kSettings, name) > 0; }

bool IsAbsent(const Json* value) {
  return value == nullptr || value->is_null() ||
         (value->boolean() != nullptr && !*value->boolean());  // a mode that is off
}

bool IsEqual(const Json& a, const Json& b) {
  const std::optional<double> x = a.number(), y = b.number();
  return x && y ? *x == *y : a == b;
}

using Figures = std::vector<std::pair<std::string, std::vector<double>>>;

std::optional<std::vector<double>> ValuesOf(const Json& value) {
  if (const std::optional<double> number = value.number()) return {{*number}};
  if (value.array() == nullptr || value.array()->empty()) return std::nullopt;
  std::vector<double> values;
  for (const Json& item : *value.array()) {
    if (!item.number()) return std::nullopt;
    values.push_back(*item.number());
  }
  return values;
}

void AddFigure(Figures& figures, const std::string& name, std::vector<double> values) {
  const auto found = std::ranges::find(figures, name, &Figures::value_type::first);
  if (found == figures.end()) {
    figures.emplace_back(name, std::move(values));
  } else {
    found->second = std::move(values);  // "runs" say more than their median
  }
}

// Numbers, lists of them, and the members of objects such as {"p50": 1.0, "p99": 2.0}.
void AddFigures(Figures& figures, const std::string& name, const Json& value) {
  if (IsSetting(name) || BetterOf(name) == Better::kNeither) return;
  if (auto values = ValuesOf(value)) AddFigure(figures, name, *std::move(values));
  if (value.object() == nullptr) return;
  for (const auto& [part, number] : *value.object()) {
    if (auto values = ValuesOf(number)) AddFigure(figures, name + "." + part, *std::move(values));
  }
}

std::string LabelOf(const Json& row) {
  std::string label;
  for (std::size_t i = 0; i < kNumLabels; ++i) {
    const Json* value = row.Find(kSettings[i]);
    if (IsAbsent(value)) continue;
    const std::string text = value->string() != nullptr ? *value->string() : value->Shown(24);
    const bool needs_name = kSettings[i] == "tp" || kSettings[i] == "bytes";
    if (kSettings[i] == "tp" && text == "1") continue;
    label +=
        (label.empty() ? "" : " ") + (needs_name ? std::string(kSettings[i]) + "=" : "") + text;
  }
  if (!IsAbsent(row.Find("deterministic"))) label += " deterministic";
  return label;
}

Json::Object Chosen(const Json& row, std::span<const std::string_view> names) {
  Json::Object chosen;
  for (const std::string_view name : names) {
    if (!IsAbsent(row.Find(name))) chosen.emplace_back(name, *row.Find(name));
  }
  return chosen;
}

Measurement MeasurementOf(const Json& row, const std::string& where) {
  if (row.object() == nullptr || (row.Find("scenario") == nullptr && row.Find("op") == nullptr)) {
    throw ConfigError(where + ": " + row.Shown() + ": must be an object with scenario or op");
  }
  Measurement found{.where = where,
                    .setting = Json(Chosen(row, kSettings)),
                    .place = Json(Chosen(row, kPlaces)),
                    .commit = row.Find("commit") == nullptr ? Json() : *row.Find("commit"),
                    .label = LabelOf(row),
                    .figures = {}};
  for (const auto& [name, value] : *row.object()) AddFigures(found.figures, name, value);
  const Json* runs = row.Find("runs");
  if (runs == nullptr || runs->object() == nullptr) return found;
  for (const auto& [name, values] : *runs->object()) AddFigures(found.figures, name, values);
  return found;
}

void Join(Figures& into, const Figures& other) {
  for (const auto& [name, values] : other) {
    auto found = std::ranges::find(into, name, &Figures::value_type::first);
    if (found == into.end()) found = into.insert(found, {name, {}});
    found->second.insert(found->second.end(), values.begin(), values.end());
  }
}

// Collects the measurements of a file.
class Rows {
 public:
  explicit Rows(std::string path) : path_(std::move(path)) {}

  void Add(const Json& row, std::int64_t line) {
    Measurement found = MeasurementOf(row, path_ + ", line " + std::to_string(line));
    const std::string kind =
        found.setting.Shown(std::string::npos) + found.place.Shown(std::string::npos);
    const auto [at, is_new] = by_kind_.try_emplace(kind, rows_.size());
    if (is_new) {
      RequireRoom();
      rows_.push_back(std::move(found));
    } else if (Measurement& same = rows_[at->second]; same.commit == found.commit) {
      Join(same.figures, found.figures);
    } else {
      same = std::move(found);
    }
  }

  std::vector<Measurement> Take() {
    if (!rows_.empty()) return std::move(rows_);
    throw ConfigError(path_ + " has 0 rows: must have at least 1");
  }

 private:
  void RequireRoom() const {
    constexpr std::size_t kMost = 5000;
    if (rows_.size() < kMost) return;
    throw ConfigError(path_ + " has more than " + std::to_string(kMost) +
                      " different measurements: must have at most that many");
  }

  std::string path_;
  std::vector<Measurement> rows_;
  std::map<std::string, std::size_t> by_kind_;
};

// How well two rows go together: settings that agree, then places. Empty: not at all.
using Fit = std::pair<int, int>;

std::optional<Fit> FitOf(const Measurement& a, const Measurement& b) {
  Fit fit{0, 0};
  for (const std::string_view name : kSettings) {
    const Json *x = a.setting.Find(name), *y = b.setting.Find(name);
    if (x != nullptr && y != nullptr) {
      if (!IsEqual(*x, *y)) return std::nullopt;
      ++fit.first;
    } else if (x != y && std::ranges::count(kNeeded, name) > 0) {
      return std::nullopt;
    }
  }
  for (const std::string_view name : kPlaces) {
    const Json *x = a.place.Find(name), *y = b.place.Find(name);
    fit.second += x != nullptr && y != nullptr && *x == *y;
  }
  return fit;
}

// The best partner of `row`, or nullptr and why there is none.
const Measurement* PartnerOf(const Measurement& row, const std::vector<Measurement>& others,
                             std::string& why) {
  std::optional<Fit> best;
  const Measurement* partner = nullptr;
  why = "no row like it in the other file";
  for (const Measurement& other : others) {
    const std::optional<Fit> fit = FitOf(row, other);
    if (!fit || (best && *fit < *best)) continue;
    if (best && *fit == *best) {
      why = "fits " + other.where + " no better than " +
            (partner == nullptr ? "others" : partner->where);
      partner = nullptr;
    } else {
      best = fit, partner = &other;
    }
  }
  return partner;
}

}  // namespace

Better BetterOf(std::string_view figure) {
  for (const std::string_view end : {"tok_s", "tb_s", "per_s", "per_cpu_s"}) {
    if (figure.ends_with(end)) return Better::kHigher;
  }
  for (const std::string_view end : {"_s", "_ms", "_us", "_ns"}) {
    if (figure.ends_with(end)) return Better::kLower;
  }
  return figure == "s" || figure == "us" ? Better::kLower : Better::kNeither;
}

const std::vector<double>* Measurement::Find(std::string_view figure) const {
  const auto found = std::ranges::find(figures, figure, &Figures::value_type::first);
  return found == figures.end() ? nullptr : &found->second;
}

std::vector<Measurement> ReadMeasurements(const std::string& path) {
  const std::string text = ReadFile(path);
  JsonReader reader(text);
  Rows rows(path);
  try {
    while (const std::optional<Json> value = reader.Next()) {
      if (value->array() == nullptr) rows.Add(*value, reader.line());
      if (value->array() == nullptr) continue;
      for (const Json& row : *value->array()) rows.Add(row, reader.line());
    }
  } catch (const JsonError& error) {
    throw ConfigError(path + ", " + error.what());
  }
  return rows.Take();
}

Pairs PairUp(const std::vector<Measurement>& a, const std::vector<Measurement>& b) {
  Pairs pairs;
  std::string why;
  for (const Measurement& row : a) {
    const Measurement* partner = PartnerOf(row, b, why);
    if (partner != nullptr) {
      pairs.both.emplace_back(&row, partner);
    } else {
      pairs.alone.push_back(row.where + ": " + row.label + ": " + why);
    }
  }
  return pairs;
}

}  // namespace runtime::bench
