#include "bench/model_file.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <string_view>
#include <vector>

#include "bench/output.h"
#include "common/nearest.h"
#include "runtime/error.h"

namespace runtime::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;

std::string Lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

NamedShape ReadModel(const std::string& path) {
  std::error_code failed;
  fs::path file = fs::canonical(path, failed);
  if (!failed && fs::is_directory(file)) file /= "config.json";
  if (failed || !fs::is_regular_file(file)) {
    throw ModelNotFound(path + ": no folder with config.json is there", "give the model's folder");
  }
  const std::string text = ReadFile(file, kMaxConfigBytes);
  return {file.parent_path().filename(), ModelShape::FromConfig(text)};
}

void DeviceFlags::AddTo(Flags& flags) {
  std::string names;
  for (const KnownDevice& device : KnownDevices()) {
    names += (names.empty() ? "" : " or ") + std::string(device.short_name);
  }
  flags.Value("device", "NAME", names + ", or the name that the driver gives", device_);
  flags.Value("bandwidth", "R", "bytes a second of its memory, instead", bandwidth_);
  flags.Value("flops", "R", "operations a second of 16-bit products, instead", flops_);
  flags.Value("link", "R", "bytes a second between two devices, instead", link_);
  flags.Value("memory", "BYTES", "of the device, instead", memory_);
  flags.Value("utilization", "SHARE", "of the memory for weights and KV cache, instead",
              utilization_);
  flags.Value("launch-s", "S", "seconds of every step on top of the roofline", launch_s_);
  flags.Value("host-s", "S", "likewise, of the host", host_s_);
}

KnownDevice DeviceFlags::Chosen() const {
  std::vector<std::string_view> known;
  for (const KnownDevice& device : KnownDevices()) {
    known.push_back(device.short_name);
    known.push_back(device.name);
    if (Lower(device_) != device.short_name && device_ != device.name) continue;
    KnownDevice chosen = device;
    DeviceLimits& limits = chosen.limits;
    limits.bandwidth = bandwidth_.value_or(limits.bandwidth);
    limits.flops = flops_.value_or(limits.flops);
    limits.link = link_.value_or(limits.link);
    limits.memory = memory_.value_or(limits.memory);
    limits.utilization = utilization_.value_or(limits.utilization);
    limits.launch_s = launch_s_.value_or(limits.launch_s);
    limits.host_s = host_s_.value_or(limits.host_s);
    limits.Validate();
    return chosen;
  }
  throw UsageError("unknown device '" + device_ + "'" + DidYouMean(device_, known) +
                   "; another one is described by --bandwidth, --flops and --memory");
}

}  // namespace runtime::bench
