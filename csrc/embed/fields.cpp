#include "embed/fields.h"

#include <optional>
#include <string>

#include "runtime/request_params.h"

namespace runtime::embed {
namespace {

BridgeField Field(const char* name, bool value) {
  return {name, kBridgeBool, value, 0.0, nullptr, 0};
}

BridgeField Field(const char* name, std::int64_t value) {
  return {name, kBridgeInteger, value, 0.0, nullptr, 0};
}

BridgeField Field(const char* name, double value) {
  return {name, kBridgeReal, 0, value, nullptr, 0};
}

BridgeField List(const char* name, BridgeKind kind, const auto& values) {
  return {name, kind, 0, 0.0, values.data(), values.size()};
}

BridgeField Field(const char* name, const std::string& text) {
  return List(name, kBridgeText, text);
}

BridgeField Field(const char* name, const std::vector<TokenId>& ids) {
  return List(name, kBridgeTokenIds, ids);
}

BridgeField Field(const char* name, const std::vector<std::int64_t>& values) {
  return List(name, kBridgeIntegers, values);
}

BridgeField Field(const char* name, const std::vector<BridgeText>& texts) {
  return List(name, kBridgeTexts, texts);
}

BridgeField Field(const char* name, const std::vector<BridgeBias>& biases) {
  return List(name, kBridgeBiases, biases);
}

BridgeField Field(const char* name, const std::vector<BridgeField>& fields) {
  return List(name, kBridgeFields, fields);
}

template <typename... T>
BridgeField Field(const char* name, const std::variant<T...>& value) {
  return std::visit([name](const auto& held) { return Field(name, held); }, value);
}

}  // namespace

template <typename T>
void Fields::Add(const char* name, const T& value) {
  if constexpr (requires { value.has_value(); }) {
    if (value) fields_.push_back(Field(name, *value));
  } else if constexpr (requires { value.empty(); }) {
    if (!value.empty()) fields_.push_back(Field(name, value));
  } else {
    fields_.push_back(Field(name, value));
  }
}

Fields::Fields(const EngineConfig& config) {
  Add("model", config.model);
  for (const auto& [name, value] : config.arguments) Add(name.c_str(), value);
}

Fields::Fields(const Item& item) {
  if (item.kind == Item::Kind::kAbort || item.kind == Item::Kind::kMore) return;
  Add("prompt", item.request.prompt);
  if (item.kind == Item::Kind::kScore) {
    Add("continuation", item.continuation);
  } else {
    AddRequest(item.request);
  }
}

void Fields::AddRequest(const Request& request) {
  for (const std::string& stop : request.stop) stops_.push_back({stop.data(), stop.size()});
  for (const std::string& word : request.bad_words)
    bad_words_.push_back({word.data(), word.size()});
  for (const auto& [id, bias] : request.logit_bias) biases_.push_back({id, bias});
  Add("n", request.n);
  Add("temperature", request.temperature);
  Add("top_p", request.top_p);
  Add("top_k", request.top_k);
  Add("min_p", request.min_p);
  Add("presence_penalty", request.presence_penalty);
  Add("frequency_penalty", request.frequency_penalty);
  Add("repetition_penalty", request.repetition_penalty);
  Add("seed", request.seed);
  Add("stop", stops_);
  Add("stop_token_ids", request.stop_token_ids);
  Add("ignore_eos", request.ignore_eos);
  Add("max_tokens", request.max_tokens);
  // left out it would be Python's default
  if (!request.max_tokens) fields_.push_back({"max_tokens", kBridgeNone, 0, 0.0, nullptr, 0});
  Add("min_tokens", request.min_tokens);
  Add("logprobs", request.logprobs);
  Add("logit_bias", biases_);
  Add("allowed_token_ids", request.allowed_token_ids);
  Add("bad_words", bad_words_);
  Add("detokenize", request.detokenize);
  Add("skip_special_tokens", request.skip_special_tokens);
  Add("include_stop_str_in_output", request.include_stop_str_in_output);
  Add("priority", request.priority);
  Add("tenant", request.tenant);
  Add("deadline_s", request.deadline_s);
  Add("cache_salt", request.cache_salt);
  if (request.structured_outputs) AddStructure(*request.structured_outputs);
}

void Fields::AddStructure(const StructuredOutputs& structure) {
  // one that is empty was given all the same: Python says what is wrong with it
  const auto add = [this](const char* name, const std::optional<std::string>& text) {
    if (text) structure_.push_back(Field(name, *text));
  };
  add("json", structure.json);
  add("regex", structure.regex);
  add("grammar", structure.grammar);
  if (structure.choice) {
    for (const std::string& text : *structure.choice)
      choices_.push_back({text.data(), text.size()});
    structure_.push_back(Field("choice", choices_));
  }
  structure_.push_back(Field("json_object", structure.json_object));
  structure_.push_back(Field("disable_any_whitespace", structure.disable_any_whitespace));
  fields_.push_back(Field("structured_outputs", structure_));
}

void CheckNumbers(const Request& request) {
  RequestNumbers numbers;
  numbers.n = request.n;
  numbers.temperature = request.temperature;
  numbers.top_p = request.top_p;
  numbers.top_k = request.top_k;
  numbers.min_p = request.min_p;
  numbers.presence_penalty = request.presence_penalty;
  numbers.frequency_penalty = request.frequency_penalty;
  numbers.repetition_penalty = request.repetition_penalty;
  numbers.seed = request.seed;
  numbers.stop_token_ids = request.stop_token_ids;
  numbers.max_tokens = request.max_tokens;
  numbers.min_tokens = request.min_tokens;
  numbers.logprobs = request.logprobs;
  numbers.logit_bias.assign(request.logit_bias.begin(), request.logit_bias.end());
  if (!request.allowed_token_ids.empty()) numbers.allowed_token_ids = request.allowed_token_ids;
  RequestParams{numbers};  // the one place that checks them
}

}  // namespace runtime::embed
