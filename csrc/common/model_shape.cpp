#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <string>

#include "common/json.h"
#include "runtime/error.h"
#include "runtime/roofline.h"

namespace runtime {
namespace {

using Names = std::initializer_list<std::string_view>;

// Model types with two matrices in the feed-forward layer, not three.
constexpr std::array<std::string_view, 5> kUngated{"bloom", "gpt2", "opt", "gpt_neox", "falcon"};

// Reads sizes and collects what is wrong with them. A size has several names, as in
// runtime/loader/model_config.py; the first one counts and is the one that errors name.
class Sizes {
 public:
  explicit Sizes(const Json& config) : config_(config) {}

  std::int64_t Required(Names names, std::int64_t limit) {
    const std::optional<std::int64_t> found = Optional(names, limit);
    if (!found) Problem(std::string(*names.begin()) + " is missing");
    return found.value_or(1);
  }

  std::optional<std::int64_t> Optional(Names names, std::int64_t limit) {
    const Json* value = First(names);
    if (value == nullptr) return std::nullopt;
    const std::int64_t* number = value->integer();
    if (number != nullptr && *number >= 1 && *number <= limit) return *number;
    Problem(std::string(*names.begin()) + "=" + value->Shown() + ": an integer from 1 to " +
            std::to_string(limit) + " is needed");
    return 1;
  }

  // 0 where it is not there or makes no sense: experts are optional in every family.
  std::int64_t Count(Names names) const {
    for (const std::string_view name : names) {
      const Json* value = config_.Find(name);
      const std::int64_t* number = value == nullptr ? nullptr : value->integer();
      if (number != nullptr && *number >= 0 && *number <= 1 << 22) return *number;
    }
    return 0;
  }

  bool Flag(std::string_view name) {
    const Json* value = First({name});
    if (value == nullptr) return false;
    if (value->boolean() != nullptr) return *value->boolean();
    Problem(std::string(name) + "=" + value->Shown() + ": true or false is needed");
    return false;
  }

  std::string ModelType() {
    const Json* value = First({"model_type"});
    if (value != nullptr && value->string() != nullptr) return *value->string();
    Problem("model_type is missing");
    return {};
  }

  void Divides(const char* name, std::int64_t value, const char* other, std::int64_t by) {
    if (value % by == 0) return;
    Problem(std::string(name) + "=" + std::to_string(value) + " is not a multiple of " + other +
            "=" + std::to_string(by));
  }

  void Check() const {
    if (!problems_.empty()) throw ModelFormatError(problems_);
  }

 private:
  const Json* First(Names names) const {
    for (const std::string_view name : names) {
      const Json* value = config_.Find(name);
      if (value != nullptr && !value->is_null()) return value;
    }
    return nullptr;
  }

  void Problem(const std::string& text) {
    problems_ += (problems_.empty() ? "config.json: " : "\nconfig.json: ") + text;
  }

  const Json& config_;
  std::string problems_;
};

Json Parsed(std::string_view text) {
  try {
    Json config = ParseJson(text);
    if (config.object() != nullptr) return config;
  } catch (const JsonError& error) {
    throw ModelFormatError(std::string("config.json: ") + error.what());
  }
  throw ModelFormatError("config.json: an object is needed");
}

void SetAttention(Sizes& sizes, ModelShape& shape) {
  shape.hidden = sizes.Required({"hidden_size", "n_embed", "n_embd", "d_model"}, 1 << 20);
  shape.layers =
      sizes.Required({"num_hidden_layers", "n_layer", "n_layers", "num_layers"}, 1 << 12);
  shape.heads = sizes.Required({"num_attention_heads", "n_head", "num_heads"}, 1 << 14);
  shape.kv_heads = sizes.Optional({"num_key_value_heads"}, 1 << 14).value_or(shape.heads);
  sizes.Divides("num_attention_heads", shape.heads, "num_key_value_heads", shape.kv_heads);
  const auto head_dim = sizes.Optional({"head_dim"}, 1 << 12);
  if (!head_dim) sizes.Divides("hidden_size", shape.hidden, "num_attention_heads", shape.heads);
  shape.head_dim = head_dim.value_or(shape.hidden / shape.heads);
}

// Matrices of the feed-forward layers: dense ones, and of the others the router and shared experts.
void SetFeedForward(Sizes& sizes, ModelShape& shape) {
  const double matrices = std::ranges::count(kUngated, sizes.ModelType()) > 0 ? 2.0 : 3.0;
  const auto hidden = static_cast<double>(shape.hidden);
  const auto inner =
      static_cast<double>(sizes.Optional({"intermediate_size", "n_inner", "ffn_dim"}, 1 << 22)
                              .value_or(4 * shape.hidden));
  shape.experts = sizes.Count({"num_experts", "n_routed_experts", "num_local_experts"});
  const std::int64_t dense_layers =
      shape.experts == 0 ? shape.layers
                         : std::min(sizes.Count({"first_k_dense_replace"}), shape.layers);
  const auto expert_inner = static_cast<double>(sizes.Optional({"moe_intermediate_size"}, 1 << 22)
                                                    .value_or(static_cast<std::int64_t>(inner)));
  const double shared = static_cast<double>(sizes.Count({"n_shared_experts"})) * expert_inner +
                        static_cast<double>(sizes.Count({"shared_expert_intermediate_size"}));
  shape.moe_layers = shape.layers - dense_layers;
  shape.experts_per_token = std::min(sizes.Count({"num_experts_per_tok"}), shape.experts);
  shape.expert = matrices * hidden * expert_inner;
  shape.dense += static_cast<double>(dense_layers) * matrices * hidden * inner;
  shape.dense += static_cast<double>(shape.moe_layers) * hidden *
                 (matrices * shared + static_cast<double>(shape.experts));
}

}  // namespace

ModelShape ModelShape::FromConfig(std::string_view json) {
  const Json config = Parsed(json);
  Sizes sizes(config);
  ModelShape shape;
  SetAttention(sizes, shape);
  shape.dense = static_cast<double>(shape.layers * shape.hidden * shape.head_dim * 2 *
                                    (shape.heads + shape.kv_heads));
  SetFeedForward(sizes, shape);
  shape.head = static_cast<double>(sizes.Required({"vocab_size"}, 1 << 24) * shape.hidden);
  shape.embedding = sizes.Flag("tie_word_embeddings") ? 0.0 : shape.head;
  sizes.Check();
  return shape;
}

double ModelShape::total() const {
  return dense + static_cast<double>(moe_layers * experts) * expert + head + embedding;
}

double ModelShape::active() const {
  return dense + static_cast<double>(moe_layers * experts_per_token) * expert;
}

double ModelShape::Read(double num_tokens) const {
  if (experts == 0) return dense + head;
  const auto all = static_cast<double>(experts);
  const double missed = std::pow(1 - static_cast<double>(experts_per_token) / all, num_tokens);
  return dense + head + static_cast<double>(moe_layers) * all * (1 - missed) * expert;
}

double ModelShape::KvValues(std::int32_t tp) const {
  return 2.0 * static_cast<double>(layers * kv_heads * head_dim) /
         static_cast<double>(std::min<std::int64_t>(tp, kv_heads));
}

}  // namespace runtime
