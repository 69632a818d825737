#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace runtime::simulation {

// The finaliser of splitmix64 (G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom
// number generators", 2014).
constexpr std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Random numbers that are a function of (seed, stream, index) and of how many were drawn, on every
// platform: neither engines nor distributions of the standard library.
class Random {
 public:
  Random(std::int64_t seed, std::uint64_t stream, std::int64_t index)
      : state_(Mix(Mix(Mix(static_cast<std::uint64_t>(seed)) + stream * kGolden) +
                   static_cast<std::uint64_t>(index) * kGolden)) {}

  std::uint64_t Next() { return Mix(state_ += kGolden); }

  // In (0, 1).
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1p-53; }

  // In [0, count).
  std::int64_t Below(std::int64_t count) {
    return static_cast<std::int64_t>(Uniform() * static_cast<double>(count));
  }

  // Box and Muller, 1958.
  double Normal() {
    const double radius = std::sqrt(-2.0 * std::log(Uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * Uniform());
  }

  double Exponential() { return -std::log(Uniform()); }

  // Of scale 1. G. Marsaglia and W. W. Tsang, "A simple method for generating gamma variables",
  // 2000.
  double Gamma(double shape) {
    if (shape < 1.0) {
      const double boost = std::pow(Uniform(), 1.0 / shape);
      return boost * Gamma(shape + 1.0);
    }
    const double d = shape - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
    for (;;) {
      const double x = Normal(), v = std::pow(1.0 + c * x, 3.0);
      if (v > 0.0 && std::log(Uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
  }

 private:
  static constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;
  std::uint64_t state_;
};

}  // namespace runtime::simulation
