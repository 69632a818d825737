#include <string>
#include <utility>
#include <vector>

#include "bench/commands.h"
#include "bench/model_file.h"
#include "bench/output.h"
#include "common/text.h"
#include "runtime/roofline.h"
#include "runtime/version.h"

namespace runtime::bench {
namespace {

constexpr double kMs = 1e3;

// So many prompts of so many tokens, "16x4096" or "4096".
struct Prompts {
  std::int32_t count = 1, len = 0;
};

struct Options {
  std::string model;
  DeviceFlags device;
  RooflineOptions limits;
  std::vector<std::int32_t> batch{1, 8, 64, 256};
  std::vector<std::int32_t> context{1128};  // mean of decode_bN: 1000 tokens in, 256 out
  std::vector<std::string> prompts{"512", "2048", "8192", "32768", "16x4096"};
  bool json = false;
};

bool Parse(const Words& words, Options& options) {
  Flags flags("runtime-bench roofline",
              "The least time of a model's steps on a device: each matrix product and attention "
              "takes the longer of reading and computing.");
  flags.Operand("MODEL", "folder with config.json", options.model);
  flags.Value("tp", "N", "devices that share the model", options.limits.tp);
  flags.Value("batch", "N,N", "requests of a decode step", options.batch);
  flags.Value("ctx", "N,N", "tokens of context of each", options.context);
  flags.Value("prompt", "N,KxN", "prompts: one of N tokens, or K together", options.prompts);
  flags.Value("weight-bytes", "B", "of one parameter", options.limits.weight_bytes);
  flags.Value("kv-bytes", "B", "of one value in the KV cache", options.limits.kv_bytes);
  options.device.AddTo(flags);
  flags.Switch("json", "rows as JSON lines", options.json);
  return flags.Parse(words);
}

std::int32_t RequireSize(const char* flag, std::int64_t value) {
  constexpr std::int64_t kMost = 1 << 24;
  if (value >= 1 && value <= kMost) return static_cast<std::int32_t>(value);
  throw UsageError(std::string(flag) + "=" + std::to_string(value) + ": must be between 1 and " +
                   std::to_string(kMost));
}

Prompts ParsePrompts(const std::string& text) {
  const std::size_t x = text.find('x');
  const auto number = [&text](const std::string& digits) {
    const bool is_number = !digits.empty() && digits.size() < 10 &&
                           digits.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number) throw UsageError("--prompt=" + text + ": must be N or KxN, such as 16x4096");
    return RequireSize("--prompt", std::stol(digits));
  };
  if (x == std::string::npos) return {1, number(text)};
  return {std::min(number(text.substr(0, x)), 4096), number(text.substr(x + 1))};
}

// Limits of one model, and the rows about them.
class Report {
 public:
  Report(const Options& options, const NamedShape& model, const KnownDevice& device)
      : name_(model.name),
        shape_(model.shape),
        device_(device),
        options_(options.limits),
        limits_(model.shape, device.limits, options.limits) {}

  Json::Object Capacity() const {
    Json::Object row = Head("capacity");
    row.emplace_back("parameters", Json(shape_.total()));
    row.emplace_back("active_parameters", Json(shape_.active() + shape_.head));
    row.emplace_back("weights_gb", Rounded(shape_.total() * options_.weight_bytes / 1e9, 3));
    row.emplace_back("kv_bytes_per_token", Json(limits_.KvBytesPerToken()));
    row.emplace_back("kv_tokens", Json(std::max<std::int64_t>(limits_.KvTokens(), 0)));
    return Tail(std::move(row));
  }

  Json::Object Decode(std::int32_t batch, std::int32_t context) const {
    const StepTime step = limits_.Decode(batch, context);
    Json::Object row = Head("decode_b" + std::to_string(batch));
    row.emplace_back("batch", Json(batch));
    row.emplace_back("context", Json(context));
    row.emplace_back("tpot_ms", Rounded(step.total() * kMs, 4));
    AddParts(row, step);
    row.emplace_back("tok_s", Rounded(batch / step.total(), 1));
    row.emplace_back("fits", Json(std::int64_t{batch} * context <= limits_.KvTokens()));
    return Tail(std::move(row));
  }

  Json::Object Prefill(const Prompts& prompts) const {
    const std::vector<std::int32_t> lens(static_cast<std::size_t>(prompts.count), prompts.len);
    const StepTime step = limits_.Prefill(lens);
    const double num_tokens = static_cast<double>(prompts.count) * prompts.len;
    Json::Object row =
        Head("prefill_" + std::to_string(prompts.count) + "x" + std::to_string(prompts.len));
    row.emplace_back("batch", Json(prompts.count));
    row.emplace_back("in", Json(prompts.len));
    row.emplace_back("s", Rounded(step.total(), 6));
    AddParts(row, step);
    row.emplace_back("tok_s", Rounded(num_tokens / step.total(), 1));
    row.emplace_back("counted", Json("input"));
    row.emplace_back("fits", Json(num_tokens <= static_cast<double>(limits_.KvTokens())));
    return Tail(std::move(row));
  }

 private:
  Json::Object Head(const std::string& scenario) const {
    return {{"engine", Json("roofline")},
            {"model", Json(name_)},
            {"tp", Json(options_.tp)},
            {"scenario", Json(scenario)}};
  }

  Json::Object Tail(Json::Object row) const {
    row.emplace_back("device", Json(device_.name));
    row.emplace_back("versions",
                     Json(Json::Object{{"runtime", Json(std::string_view(Version()))}}));
    return row;
  }

  static void AddParts(Json::Object& row, const StepTime& step) {
    row.emplace_back("gemm_ms", Rounded(step.gemm * kMs, 4));
    row.emplace_back("attention_ms", Rounded(step.attention * kMs, 4));
    row.emplace_back("collective_ms", Rounded(step.collectives * kMs, 4));
  }

  std::string name_;
  ModelShape shape_;
  KnownDevice device_;
  RooflineOptions options_;
  Roofline limits_;
};

std::string TextOf(const std::vector<Json::Object>& rows) {
  const Json capacity(rows.front());
  const auto number = [&capacity](const char* name) { return *capacity.Find(name)->number(); };
  const std::string head = *capacity.Find("model")->string() + ", tp " +
                           Text(*capacity.Find("tp")->integer()) + ", " +
                           *capacity.Find("device")->string() + "\n" +
                           Format("%.2f billion parameters", number("parameters") / 1e9) +
                           Format(" (%.2f for a token), ", number("active_parameters") / 1e9) +
                           Format("%.1f GB of weights, ", number("weights_gb")) +
                           Format("%.0f KiB of KV a token, ", number("kv_bytes_per_token") / 1024) +
                           Format("%.0f tokens of KV fit\n\n", number("kv_tokens"));
  Table table({"scenario", "context", "products", "attention", "sums", "step", "tok/s", "fits"});
  for (std::size_t i = 1; i < rows.size(); ++i) {
    const Json row(rows[i]);
    const auto ms = [&row](const char* name) {
      return Format("%.3f ms", *row.Find(name)->number());
    };
    const Json* context = row.Find("context");
    const Json* step_ms = row.Find("tpot_ms");
    const double total = step_ms != nullptr ? *step_ms->number() : *row.Find("s")->number() * kMs;
    table.Add({*row.Find("scenario")->string(), context == nullptr ? "" : context->Shown(),
               ms("gemm_ms"), ms("attention_ms"), ms("collective_ms"), Format("%.3f ms", total),
               Format("%.0f", *row.Find("tok_s")->number()),
               *row.Find("fits")->boolean() ? "yes" : "no"});
  }
  return head + table.Text();
}

}  // namespace

int RunRoofline(const Words& words) {
  Options options;
  if (!Parse(words, options)) return 0;
  const Report report(options, ReadModel(options.model), options.device.Chosen());
  std::vector<Json::Object> rows{report.Capacity()};
  for (const std::int32_t context : options.context) {
    for (const std::int32_t batch : options.batch) {
      rows.push_back(report.Decode(RequireSize("--batch", batch), RequireSize("--ctx", context)));
    }
  }
  for (const std::string& text : options.prompts) {
    rows.push_back(report.Prefill(ParsePrompts(text)));
  }
  if (!options.json) return Print(TextOf(rows)), 0;
  for (const Json::Object& row : rows) PrintRow(row);
  return 0;
}

}  // namespace runtime::bench
