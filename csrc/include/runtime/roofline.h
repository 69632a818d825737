// Step times that a device cannot beat, from the sizes of a model.
//
// A matrix product takes the longer of reading its weights and multiplying; attention, of reading
// KV and multiplying (S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual
// performance model", 2009). With `tp` ranks each holds its share, and two all-reduces a layer join
// them, one more the embedding.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/step_time.h"

namespace runtime {

// What one accelerator gives; the defaults are those of an H200 SXM.
struct DeviceLimits {
  double bandwidth = 4.3e12;  // of memory, bytes a second: a copy, read and written
  double flops = 788e12;      // dense 16-bit matrix products of random values, operations a second
  double link = 450e9;        // bytes a second between two devices
  double bus_bandwidth = 340e9;  // bytes a second of a ring over all of them
  double one_shot_s = 2.8e-6;    // latencies of the three ways to all-reduce
  double two_shot_s = 5.0e-6;
  double ring_s = 10e-6;
  double memory = 143771.0 * (1 << 20);  // bytes
  double utilization = 0.9;              // share of the memory for weights and KV cache,
  double reserve = 2.5e9;                // and bytes of it that neither gets
  double launch_s = 0.0;                 // of every step, on top of the roofline
  double host_s = 0.0;                   // likewise

  // Seconds to sum so many bytes over `tp` devices, the fastest of one-shot, two-shot and ring.
  double AllReduceSeconds(double num_bytes, std::int32_t tp) const;
  // Throws ConfigError.
  void Validate() const;
};

struct KnownDevice {
  std::string_view short_name;  // "h200"
  std::string_view name;        // as its driver calls it, "NVIDIA H200"
  DeviceLimits limits;
};
// Bandwidth and operations as measured.
std::span<const KnownDevice> KnownDevices();

// Sizes of a decoder-only transformer, in parameters where not said otherwise.
struct ModelShape {
  std::int64_t hidden = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t moe_layers = 0;
  std::int64_t experts = 0;  // of such a layer
  std::int64_t experts_per_token = 0;
  double expert = 0.0;     // one of them
  double dense = 0.0;      // of all layers, read in every step
  double head = 0.0;       // the language model's head
  double embedding = 0.0;  // besides the head; 0: tied

  // From the text of a Hugging Face config.json. Throws ModelFormatError with everything wrong.
  static ModelShape FromConfig(std::string_view json);

  double total() const;
  // That one token is multiplied with, the head left out.
  double active() const;
  // That a step of so many tokens reads: all, but of the experts those that uniform routing hits.
  double Read(double num_tokens) const;
  // Values in the KV cache for one token, on each of `tp` ranks.
  double KvValues(std::int32_t tp) const;
};

struct RooflineOptions {
  std::int32_t tp = 1;        // ranks that share the model; divides its heads
  double weight_bytes = 2.0;  // of one parameter
  double kv_bytes = 2.0;      // of one value in the KV cache
};

// A request of an offline run.
struct RequestLengths {
  std::int32_t prompt_len = 0;
  std::int32_t output_len = 0;
};

class Roofline {
 public:
  // Throws ConfigError.
  Roofline(const ModelShape& shape, const DeviceLimits& device,
           const RooflineOptions& options = {});

  // A step of `batch` requests with `context` tokens each, in the mean.
  StepTime Decode(double batch, double context) const;
  // Prompts computed together, each up to its first token.
  StepTime Prefill(std::span<const std::int32_t> prompt_lens) const;
  // Seconds of requests that all run at once: every prompt, then decode steps of those that are
  // left.
  double OfflineSeconds(std::span<const RequestLengths> requests) const;

  double KvBytesPerToken() const;  // on one rank
  // Tokens whose KV fits beside the weights; negative when the weights alone do not fit.
  std::int64_t KvTokens() const;
  // For the scheduler and the simulator. The head sees at most `max_num_seqs` tokens of a step.
  StepTimeModel StepTimes(std::int32_t max_num_seqs) const;

 private:
  // Of the matrix products of a step, `num_sampled` of whose tokens the head sees.
  double GemmSeconds(double num_tokens, double num_sampled) const;
  double AttentionSeconds(double kv_tokens_read, double num_pairs) const;
  double CollectiveSeconds(double num_tokens) const;

  ModelShape shape_;
  DeviceLimits device_;
  RooflineOptions options_;
};

}  // namespace runtime
