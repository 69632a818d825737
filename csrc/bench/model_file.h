#pragma once

#include <string>

#include "bench/flags.h"
#include "runtime/roofline.h"

namespace runtime::bench {

struct NamedShape {
  std::string name;  // of the folder
  ModelShape shape;
};

// Of a folder with config.json, or of such a file. Throws ModelNotFound and ModelFormatError.
NamedShape ReadModel(const std::string& path);

// --device and the flags that change single figures of it.
class DeviceFlags {
 public:
  void AddTo(Flags& flags);
  // The device with its changes. Throws UsageError.
  KnownDevice Chosen() const;

 private:
  std::string device_ = "h200";
  std::optional<double> bandwidth_, flops_, link_, memory_, utilization_, launch_s_, host_s_;
};

}  // namespace runtime::bench
