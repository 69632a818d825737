#include "runtime/roofline.h"

#include <pybind11/stl.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bind.h"

namespace py = pybind11;
using py::literals::operator""_a;

namespace runtime::bindings {
namespace {

void BindDevice(py::module_& m) {
  using D = DeviceLimits;
  constexpr D d;
  py::class_<D>(m, "DeviceLimits",
                "What one accelerator gives; the defaults are those of an H200 SXM. Rates are a "
                "second's, sizes bytes, utilization is the share of the memory for weights and KV "
                "cache, reserve bytes of it that neither gets; launch_s and host_s are of every "
                "step. Raises ConfigError.")
      .def(py::init([](double bandwidth, double flops, double link, double bus_bandwidth,
                       double one_shot_s, double two_shot_s, double ring_s, double memory,
                       double utilization, double reserve, double launch_s, double host_s) {
             const D device{bandwidth, flops,  link,        bus_bandwidth, one_shot_s, two_shot_s,
                            ring_s,    memory, utilization, reserve,       launch_s,   host_s};
             device.Validate();
             return device;
           }),
           py::kw_only(), "bandwidth"_a = d.bandwidth, "flops"_a = d.flops, "link"_a = d.link,
           "bus_bandwidth"_a = d.bus_bandwidth, "one_shot_s"_a = d.one_shot_s,
           "two_shot_s"_a = d.two_shot_s, "ring_s"_a = d.ring_s, "memory"_a = d.memory,
           "utilization"_a = d.utilization, "reserve"_a = d.reserve, "launch_s"_a = d.launch_s,
           "host_s"_a = d.host_s)
      .def_readonly("bandwidth", &D::bandwidth)
      .def_readonly("flops", &D::flops)
      .def_readonly("link", &D::link)
      .def_readonly("bus_bandwidth", &D::bus_bandwidth)
      .def_readonly("one_shot_s", &D::one_shot_s)
      .def_readonly("two_shot_s", &D::two_shot_s)
      .def_readonly("ring_s", &D::ring_s)
      .def_readonly("memory", &D::memory)
      .def_readonly("utilization", &D::utilization)
      .def_readonly("reserve", &D::reserve)
      .def_readonly("launch_s", &D::launch_s)
      .def_readonly("host_s", &D::host_s)
      .def("all_reduce_s", &D::AllReduceSeconds, "num_bytes"_a, "tp"_a,
           "Seconds to sum so many bytes over `tp` devices, the fastest way.");
  m.def(
      "known_devices",
      [] {
        std::map<std::string, D> devices;
        for (const KnownDevice& device : KnownDevices())
          devices.emplace(device.name, device.limits);
        return devices;
      },
      "Measured limits by the name that the driver gives.");
}

void BindShape(py::module_& m) {
  using S = ModelShape;
  py::class_<S>(m, "ModelShape",
                "Sizes of a decoder-only transformer, in parameters where not said otherwise.")
      .def_static("from_config", &S::FromConfig, "json"_a,
                  "From the text of a config.json. Raises ModelFormatError.")
      .def_readonly("hidden", &S::hidden)
      .def_readonly("layers", &S::layers)
      .def_readonly("heads", &S::heads)
      .def_readonly("kv_heads", &S::kv_heads)
      .def_readonly("head_dim", &S::head_dim)
      .def_readonly("moe_layers", &S::moe_layers)
      .def_readonly("experts", &S::experts, "of such a layer")
      .def_readonly("experts_per_token", &S::experts_per_token)
      .def_readonly("expert", &S::expert, "one of them")
      .def_readonly("dense", &S::dense, "of all layers, read in every step")
      .def_readonly("head", &S::head)
      .def_readonly("embedding", &S::embedding, "besides the head; 0: tied")
      .def_property_readonly("total", &S::total)
      .def_property_readonly("active", &S::active,
                             "that one token is multiplied with, the head left out");
}

double OfflineSeconds(const Roofline& self,
                      const std::vector<std::pair<std::int32_t, std::int32_t>>& requests) {
  std::vector<RequestLengths> lengths;
  for (const auto& [prompt_len, output_len] : requests) lengths.push_back({prompt_len, output_len});
  return self.OfflineSeconds(lengths);
}

}  // namespace

void BindRoofline(py::module_& m) {
  BindDevice(m);
  BindShape(m);
  py::class_<Roofline>(m, "Roofline",
                       "Step times that a device cannot beat: each matrix product and attention "
                       "takes the longer of reading and computing. Raises ConfigError.")
      .def(py::init([](const ModelShape& shape, const DeviceLimits& device, std::int32_t tp,
                       double weight_bytes, double kv_bytes) {
             return Roofline(shape, device, {tp, weight_bytes, kv_bytes});
           }),
           "shape"_a, "device"_a, py::kw_only(), "tp"_a = 1, "weight_bytes"_a = 2.0,
           "kv_bytes"_a = 2.0)
      .def(
          "decode_s",
          [](const Roofline& self, double batch, double context) {
            return self.Decode(batch, context).total();
          },
          "batch"_a, "context"_a, "A step of so many requests with `context` tokens in the mean.")
      .def(
          "prefill_s",
          [](const Roofline& self, const std::vector<std::int32_t>& prompt_lens) {
            return self.Prefill(prompt_lens).total();
          },
          "prompt_lens"_a, "Prompts computed together.")
      .def("offline_s", &OfflineSeconds, "requests"_a,
           "(prompt_len, output_len) of requests that all run at once.")
      .def_property_readonly("kv_bytes_per_token", &Roofline::KvBytesPerToken, "on one rank")
      .def_property_readonly("kv_tokens", &Roofline::KvTokens,
                             "that fit beside the weights; negative: the weights do not fit")
      .def("step_times", &Roofline::StepTimes, "max_num_seqs"_a,
           "The language model's head sees so many tokens of a step at most.");
}

}  // namespace runtime::bindings
