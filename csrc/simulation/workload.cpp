// Requests made up from distributions, or given.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "common/text.h"
#include "runtime/simulation.h"
#include "simulation/random.h"

namespace runtime::simulation {
namespace {

constexpr std::int64_t kMaxRequests = 100'000'000;
constexpr std::int64_t kMaxLeaves = 1'000'000'000;
constexpr double kMaxLength = 1 << 24;  // the largest max_model_len

// What a random number is for.
enum Stream : std::uint64_t { kArrivals = 1, kLengths = 2, kPrefixes = 3 };

double Draw(const Lengths& lengths, Random& random) {
  switch (lengths.kind) {
    case Lengths::Kind::kFixed:
      return lengths.a;
    case Lengths::Kind::kUniform:
      return lengths.a + std::floor(random.Uniform() * (lengths.b - lengths.a + 1.0));
    case Lengths::Kind::kLognormal:
      return std::exp(lengths.a + lengths.b * random.Normal());
    case Lengths::Kind::kExponential:
      return lengths.a * random.Exponential();
  }
  return 1.0;
}

std::int32_t Cut(double length, std::int32_t limit) {
  return static_cast<std::int32_t>(std::clamp(std::round(length), 1.0, static_cast<double>(limit)));
}

std::int64_t NumLeaves(const SharedPrefixes& prefixes) {
  std::int64_t leaves = prefixes.num_trees;
  for (std::int32_t level = 1; level < prefixes.depth && leaves <= kMaxLeaves; ++level) {
    leaves *= prefixes.branching;
  }
  return leaves;
}

std::int32_t PrefixLen(const SharedPrefixes& prefixes) {
  return prefixes.num_trees > 0 ? prefixes.depth * prefixes.segment_len : 0;
}

class SyntheticSource final : public RequestSource {
 public:
  SyntheticSource(const Workload& workload, std::int32_t max_len)
      : workload_(workload), max_len_(max_len), num_leaves_(NumLeaves(workload.prefixes)) {}

  std::int64_t num_requests() const override { return workload_.num_requests; }

  std::optional<SimulatedRequest> Next() override {
    if (index_ == workload_.num_requests) return std::nullopt;
    SimulatedRequest request;
    request.arrival_ns = arrival_ns_ += Gap();
    request.max_tokens = workload_.max_tokens;
    Random random(workload_.seed, kLengths, index_);
    const double prompt = Draw(workload_.prompt, random), output = Draw(workload_.output, random);
    const std::int32_t most = workload_.max_tokens > 0 ? workload_.max_tokens : max_len_ - 1;
    const std::int32_t shared = TakePrefix(request);
    request.output_len = Cut(output, std::min(most, max_len_ - shared - 1));
    request.prompt_len = shared + Cut(prompt, max_len_ - shared - request.output_len);
    if (workload_.prefixes.prompt_share > 0.0 && request.prefix_id >= 0) {
      request.prefix_len =
          static_cast<std::int32_t>(workload_.prefixes.prompt_share * request.prompt_len);
    }
    ++index_;
    return request;
  }

 private:
  std::int64_t Gap() const {
    if (workload_.is_closed() || workload_.rate == kInfinity) return 0;
    const double shape = 1.0 / (workload_.cv * workload_.cv);
    Random random(workload_.seed, kArrivals, index_);
    return std::llround(random.Gamma(shape) / (shape * workload_.rate) * kNanoseconds);
  }

  // Tokens that the prefix adds to the prompt.
  std::int32_t TakePrefix(SimulatedRequest& request) const {
    if (num_leaves_ == 0) return 0;
    Random random(workload_.seed, kPrefixes, index_);
    if (random.Uniform() >= workload_.prefixes.request_share) return 0;
    request.prefix_id = random.Below(num_leaves_);
    request.prefix_len = PrefixLen(workload_.prefixes);
    return request.prefix_len;
  }

  const Workload workload_;
  const std::int32_t max_len_;
  const std::int64_t num_leaves_;
  std::int64_t index_ = 0;
  std::int64_t arrival_ns_ = 0;
};

class GivenSource final : public RequestSource {
 public:
  explicit GivenSource(std::vector<SimulatedRequest> requests) : requests_(std::move(requests)) {}

  std::int64_t num_requests() const override { return static_cast<std::int64_t>(requests_.size()); }

  std::optional<SimulatedRequest> Next() override {
    if (index_ == requests_.size()) return std::nullopt;
    return requests_[index_++];
  }

 private:
  const std::vector<SimulatedRequest> requests_;
  std::size_t index_ = 0;
};

void RequireFit(const Workload& workload, std::int32_t max_len) {
  const Lengths &prompt = workload.prompt, &output = workload.output;
  const double shared = PrefixLen(workload.prefixes);
  const bool is_bounded = prompt.is_bounded() && output.is_bounded();
  const double total =
      shared + (is_bounded ? prompt.largest() + output.largest() : prompt.mean() + output.mean());
  if (total <= max_len) return;
  throw ConfigError(
      (is_bounded ? "the workload's longest request has " : "the workload's mean request has ") +
          Text(std::round(total)) + " tokens: must be at most " + Text(max_len),
      "max_model_len or the number of KV blocks raises it");
}

void RequireGiven(const SimulatedRequest& request, std::int64_t last_ns, std::int64_t index,
                  std::int32_t max_len) {
  const auto require = [index](bool holds, const char* field, auto value,
                               const std::string& limit) {
    if (!holds) {
      throw ConfigError("request " + Text(index) + ": " + field + "=" + Text(value) + ": must be " +
                        limit);
    }
  };
  const double arrival_s = static_cast<double>(request.arrival_ns) / kNanoseconds;
  require(request.arrival_ns >= last_ns, "arrival_s", arrival_s,
          "at least " + Text(static_cast<double>(last_ns) / kNanoseconds) +
              ", that of the request before");
  require(request.prompt_len >= 1, "prompt_len", request.prompt_len, "at least 1");
  require(request.output_len >= 1, "output_len", request.output_len, "at least 1");
  require(std::int64_t{request.prompt_len} + request.output_len <= max_len,
          "prompt_len + output_len", std::int64_t{request.prompt_len} + request.output_len,
          "at most " + Text(max_len) + " tokens, what the model and the KV pool hold");
  require(request.prefix_len >= 0 && request.prefix_len <= request.prompt_len, "prefix_len",
          request.prefix_len, "between 0 and prompt_len=" + Text(request.prompt_len));
  require(request.max_tokens == 0 || request.max_tokens >= request.output_len, "max_tokens",
          request.max_tokens, "at least output_len=" + Text(request.output_len));
}

}  // namespace

void Lengths::Validate(const char* name) const {
  const std::string of = std::string(" of ") + name;
  const auto require = [&](bool holds, const char* what, double value, const std::string& limit) {
    RequireSetting(holds, (what + of).c_str(), value, limit);
  };
  const std::string in_range = "between 1 and " + Text(kMaxLength);
  const auto is_length = [](double value) { return value >= 1.0 && value <= kMaxLength; };
  if (kind == Kind::kLognormal) {
    require(std::abs(a) <= 16.0, "mu", a, "between -16 and 16");
    require(b >= 0.0 && b <= 8.0, "sigma", b, "between 0 and 8");
    return;
  }
  require(is_length(a), kind == Kind::kExponential ? "mean" : "length", a, in_range);
  if (kind == Kind::kUniform)
    require(b >= a && is_length(b), "largest length", b,
            "between " + Text(a) + " and " + Text(kMaxLength));
}

double Lengths::mean() const {
  if (kind == Kind::kUniform) return 0.5 * (a + b);
  return kind == Kind::kLognormal ? std::max(std::exp(a + 0.5 * b * b), 1.0) : a;
}

void Workload::Validate() const {
  prompt.Validate("prompts");
  output.Validate("outputs");
  RequireSetting(num_requests >= 1 && num_requests <= kMaxRequests, "num_requests", num_requests,
                 "between 1 and " + Text(kMaxRequests));
  RequireSetting(rate > 0.0, "rate", rate, "above 0 requests a second");
  RequireSetting(cv > 0.0 && cv <= 100.0, "cv", cv, "above 0 and at most 100");
  RequireSetting(concurrency >= 0, "concurrency", concurrency, "at least 0 (0: open loop)");
  RequireSetting(queue_depth >= 0, "queue_depth", queue_depth, "at least 0 (0: open loop)");
  RequireSetting(max_tokens >= 0, "max_tokens", max_tokens, "at least 0 (0: the model's length)");
  RequireSetting(prefixes.num_trees >= 0, "num_trees", prefixes.num_trees, "at least 0");
  if (prefixes.num_trees == 0) return;
  RequireSetting(prefixes.branching >= 1, "branching", prefixes.branching, "at least 1");
  RequireSetting(prefixes.depth >= 1 && prefixes.depth <= 64, "depth", prefixes.depth,
                 "between 1 and 64");
  RequireSetting(NumLeaves(prefixes) <= kMaxLeaves, "number of prefixes", NumLeaves(prefixes),
                 "at most " + Text(kMaxLeaves));
  RequireSetting(prefixes.segment_len >= 0 && prefixes.segment_len <= (1 << 18), "segment_len",
                 prefixes.segment_len, "between 0 and " + Text(1 << 18));
  RequireSetting(prefixes.prompt_share >= 0.0 && prefixes.prompt_share <= 1.0, "prompt_share",
                 prefixes.prompt_share, "between 0 and 1");
  RequireSetting(prefixes.request_share >= 0.0 && prefixes.request_share <= 1.0, "request_share",
                 prefixes.request_share, "between 0 and 1");
  if (prefixes.prompt_share > 0.0 && (prefixes.segment_len > 0 || prefixes.depth > 1)) {
    throw ConfigError("prompt_share sizes the prefixes itself: segment_len must be 0 and depth 1");
  }
}

std::unique_ptr<RequestSource> MakeSource(const Workload& workload, std::int32_t max_len) {
  workload.Validate();
  RequireFit(workload, max_len);
  return std::make_unique<SyntheticSource>(workload, max_len);
}

std::unique_ptr<RequestSource> MakeSource(std::vector<SimulatedRequest> requests,
                                          std::int32_t max_len) {
  if (requests.empty()) throw ConfigError("a trace of 0 requests: must have at least 1");
  std::int64_t last_ns = 0, index = 0;
  for (const SimulatedRequest& request : requests) {
    RequireGiven(request, last_ns, ++index, max_len);
    last_ns = request.arrival_ns;
  }
  return std::make_unique<GivenSource>(std::move(requests));
}

}  // namespace runtime::simulation
