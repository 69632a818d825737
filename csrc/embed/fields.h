#pragma once

#include <vector>

#include "embed/bridge.h"
#include "embed/mailbox.h"

namespace runtime::embed {

// Keyword arguments of Python as the bridge takes them: views of a configuration or an item, which
// must outlive them.
class Fields {
 public:
  explicit Fields(const EngineConfig& config);
  explicit Fields(const Item& item);
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  const BridgeField* data() const { return fields_.data(); }
  std::size_t size() const { return fields_.size(); }

 private:
  void AddRequest(const Request& request);
  void AddStructure(const StructuredOutputs& structure);
  // Left out: an empty optional, text, list or map.
  template <typename T>
  void Add(const char* name, const T& value);

  std::vector<BridgeField> fields_;
  std::vector<BridgeText> stops_;
  std::vector<BridgeText> bad_words_;
  std::vector<BridgeBias> biases_;
  std::vector<BridgeField> structure_;
  std::vector<BridgeText> choices_;
};

// Throws InvalidRequest for a number out of bounds.
void CheckNumbers(const Request& request);

}  // namespace runtime::embed
