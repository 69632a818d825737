#include "bench/step_time_file.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "bench/output.h"
#include "common/json.h"
#include "common/nearest.h"
#include "runtime/error.h"

namespace runtime::bench {
namespace {

constexpr std::int64_t kVersion = 2;
constexpr std::array<std::string_view, 11> kFields{
    "version",           "buckets", "max_graph_rows", "decode_tile_s", "repeated_tile_share",
    "prefill_tile_s",    "host_s",  "row_s",          "source",        "kv_tokens",
    "kv_bytes_per_token"};

// The object of a calibration file; every refusal names the file and the field.
class Calibration {
 public:
  Calibration(std::string path, Json content)
      : path_(std::move(path)), content_(std::move(content)) {
    RequireVersion();
    for (const auto& [name, value] : *content_.object()) {
      if (std::ranges::count(kFields, name) > 0) continue;
      throw ConfigError(path_ + ": unknown field '" + name + "'" + DidYouMean(name, kFields));
    }
  }

  std::optional<double> Number(const char* name) const {
    const Json* value = Given(name);
    if (value == nullptr) return std::nullopt;
    if (!value->number()) Fail(name, *value, "a number");
    return value->number();
  }

  std::optional<std::int64_t> Count(const char* name) const {
    const Json* value = Given(name);
    if (value == nullptr) return std::nullopt;
    const std::int64_t* count = value->integer();
    if (count == nullptr || *count < 0 || *count >= std::int64_t{1} << 31) {
      Fail(name, *value, "an integer of at least 0");
    }
    return *count;
  }

  std::string Text(const char* name) const {
    const Json* value = Given(name);
    if (value != nullptr && value->string() == nullptr) Fail(name, *value, "text");
    return value == nullptr ? "" : *value->string();
  }

  std::vector<StepTimeModel::Bucket> Buckets() const {
    const Json* rows = Given("buckets");
    if (rows == nullptr)
      throw ConfigError(path_ + ": no buckets: a calibration file must have them");
    if (rows->array() == nullptr) FailBuckets(*rows);
    std::vector<StepTimeModel::Bucket> buckets;
    for (const Json& row : *rows->array()) buckets.push_back(BucketOf(row, *rows));
    return buckets;
  }

 private:
  void RequireVersion() const {
    if (content_.object() == nullptr) {
      throw ConfigError(path_ + " holds " + content_.Shown() +
                        ": must be an object with a version");
    }
    const Json* version = content_.Find("version");
    if (version != nullptr && *version == Json(kVersion)) return;
    throw ConfigError(
        path_ + " is a calibration file " +
            (version == nullptr ? "without a version" : "of version " + version->Shown()) +
            ": this runtime reads version " + std::to_string(kVersion),
        "calibrate again with this version");
  }

  StepTimeModel::Bucket BucketOf(const Json& row, const Json& rows) const {
    const Json::Array* v = row.array();
    if (v == nullptr || v->size() != 4 || v->front().integer() == nullptr) FailBuckets(rows);
    const std::int64_t num_tokens = *v->front().integer();
    const bool is_size = num_tokens >= 1 && num_tokens < std::int64_t{1} << 31;
    const auto launch_s = (*v)[1].number(), gemm_s = (*v)[2].number(), sum_s = (*v)[3].number();
    if (!is_size || !launch_s || !gemm_s || !sum_s) FailBuckets(rows);
    return {static_cast<std::int32_t>(num_tokens), *launch_s, *gemm_s, *sum_s};
  }

  [[noreturn]] void FailBuckets(const Json& rows) const {
    Fail("buckets", rows, "lists of one integer and three numbers");
  }

  [[noreturn]] void Fail(const char* name, const Json& value, const char* limit) const {
    throw ConfigError(path_ + ": " + name + "=" + value.Shown() + ": must be " + limit);
  }

  const Json* Given(const char* name) const {
    const Json* value = content_.Find(name);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  std::string path_;
  Json content_;
};

Json Parsed(const std::string& path) {
  try {
    return ParseJson(ReadFile(path));
  } catch (const JsonError& error) {
    throw ConfigError(path + " is not JSON: " + error.what());
  }
}

}  // namespace

DeviceStepTimes ReadCalibration(const std::string& path) {
  const Calibration file(path, Parsed(path));
  DeviceStepTimes times;
  times.model.buckets = file.Buckets();
  times.model.max_graph_rows = static_cast<std::int32_t>(file.Count("max_graph_rows").value_or(0));
  times.model.decode_tile_s = file.Number("decode_tile_s").value_or(0.0);
  times.model.repeated_tile_share = file.Number("repeated_tile_share").value_or(1.0);
  times.model.prefill_tile_s = file.Number("prefill_tile_s").value_or(0.0);
  times.model.host_s = file.Number("host_s").value_or(0.0);
  times.model.row_s = file.Number("row_s").value_or(0.0);
  times.source = file.Text("source");
  times.kv_tokens = file.Count("kv_tokens");
  times.kv_bytes_per_token = file.Number("kv_bytes_per_token");
  times.model.Validate();
  return times;
}

}  // namespace runtime::bench
