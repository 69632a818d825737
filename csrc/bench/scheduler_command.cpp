#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "bench/commands.h"
#include "bench/output.h"
#include "bench/scheduler_timing.h"

namespace runtime::bench {
namespace {

struct Options {
  std::vector<std::int32_t> batch{64, 256, 1024};
  std::int32_t num_steps = 2000, repeat = 3, prompt_len = 8192;
  bool json = false;
  std::string append;
};

bool Parse(const Words& words, Options& options) {
  Flags flags("runtime-bench scheduler",
              "Times of the compiled scheduler alone, on this CPU: no model, no Python.");
  flags.Value("batch", "N,N", "running decodes", options.batch);
  flags.Value("steps", "N", "steps of each run", options.num_steps);
  flags.Value("repeat", "N", "runs, of which the median counts", options.repeat);
  flags.Value("in", "N", "tokens of the prompt that is all cached", options.prompt_len);
  flags.Switch("json", "rows as JSON lines", options.json);
  flags.Value("append", "FILE", "add the rows to a .jsonl file", options.append);
  return flags.Parse(words);
}

void RequireBetween(const char* flag, std::int32_t value, std::int32_t low, std::int32_t high) {
  if (value >= low && value <= high) return;
  throw UsageError(std::string(flag) + "=" + std::to_string(value) + ": must be between " +
                   std::to_string(low) + " and " + std::to_string(high) +
                   "; nearest: " + std::to_string(std::clamp(value, low, high)));
}

void Validate(const Options& options) {
  RequireBetween("--steps", options.num_steps, 1, 100'000);
  RequireBetween("--repeat", options.repeat, 1, 1000);
  RequireBetween("--in", options.prompt_len, 17, 1 << 20);  // above a block of 16
  for (const std::int32_t batch : options.batch) RequireBetween("--batch", batch, 1, 4096);
  if (!options.append.empty()) RequireAppendable(options.append);  // said before the measuring
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// Figures of repeated runs, by name.
class Figures {
 public:
  void Add(const std::string& name, double value) {
    auto found = std::ranges::find(runs_, name, &Runs::first);
    if (found == runs_.end()) found = runs_.insert(found, {name, {}});
    found->second.push_back(value);
  }

  // The median of each, and all of them as "runs".
  void AppendTo(Json::Object& row) const {
    Json::Object runs;
    for (const auto& [name, values] : runs_) {
      row.emplace_back(name, Rounded(Median(values), 2));
      Json::Array each;
      for (const double value : values) each.push_back(Rounded(value, 2));
      runs.emplace_back(name, Json(std::move(each)));
    }
    row.emplace_back("runs", Json(std::move(runs)));
  }

 private:
  using Runs = std::pair<std::string, std::vector<double>>;
  std::vector<Runs> runs_;
};

Json::Object RowOf(Json::Object head, const Figures& figures) {
  figures.AppendTo(head);
  for (auto& member : Environment()) head.push_back(std::move(member));
  return head;
}

Json::Object DecodeRow(std::int32_t batch, const Options& options, const Tick& tick) {
  Figures figures;
  for (std::int32_t run = 0; run < options.repeat; ++run) {
    const DecodeTimes times = TimeDecodes(batch, options.num_steps, tick);
    figures.Add("schedule_us", times.schedule_us);
    figures.Add("update_us", times.update_us);
    figures.Add("scheduler_us", times.scheduler_us);
    figures.Add("scheduler_p99_us", times.p99_us);
    figures.Add("admission_us", TimeAdmission(batch, tick));
  }
  return RowOf({{"engine", Json("runtime")},
                {"scenario", Json("scheduler_core_b" + std::to_string(batch))},
                {"batch", Json(batch)},
                {"steps", Json(options.num_steps)}},
               figures);
}

Json::Object PrefixHitRow(const Options& options, const Tick& tick) {
  Figures figures;
  for (std::int32_t run = 0; run < options.repeat; ++run) {
    figures.Add("prefix_hit_us", TimePrefixHit(options.prompt_len, tick));
  }
  return RowOf({{"engine", Json("runtime")},
                {"scenario", Json("prefix_hit_core_" + std::to_string(options.prompt_len))},
                {"in", Json(options.prompt_len)}},
               figures);
}

std::string TextOf(const std::vector<Json::Object>& rows) {
  Table table({"scenario", "schedule", "update", "both", "p99", "admission", "prefix hit"});
  for (const Json::Object& fields : rows) {
    const Json row(fields);
    Table::Cells cells{*row.Find("scenario")->string()};
    for (const char* name : {"schedule_us", "update_us", "scheduler_us", "scheduler_p99_us",
                             "admission_us", "prefix_hit_us"}) {
      const Json* value = row.Find(name);
      cells.push_back(value == nullptr ? "" : Format("%.2f us", *value->number()));
    }
    table.Add(std::move(cells));
  }
  return table.Text();
}

std::vector<Json::Object> Measured(const Options& options) {
  std::vector<Json::Object> rows;
  const auto keep = [&](Json::Object row) {
    if (!options.append.empty()) AppendRow(row, options.append);
    rows.push_back(std::move(row));
  };
  Progress progress("scheduler");
  const Tick tick = [&progress] { progress.Update(); };
  for (const std::int32_t batch : options.batch) keep(DecodeRow(batch, options, tick));
  keep(PrefixHitRow(options, tick));
  return rows;
}

}  // namespace

int RunScheduler(const Words& words) {
  Options options;
  if (!Parse(words, options)) return 0;
  Validate(options);
  const std::vector<Json::Object> rows = Measured(options);
  if (!options.json) {
    Print(TextOf(rows) + "on " + *Json(rows.front()).Find("device")->string() + "\n");
  }
  for (const Json::Object& row : rows) {
    if (options.json) PrintRow(row);
  }
  return 0;
}

}  // namespace runtime::bench
