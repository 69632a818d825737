#include "runtime/step_time.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bindings/bind.h"

namespace py = pybind11;
using py::literals::operator""_a;

namespace runtime::bindings {
namespace {

StepFeatures Features(const py::array_t<std::int32_t, py::array::c_style>& plan) {
  return FeaturesOf({plan.data(), static_cast<std::size_t>(plan.size())});
}

StepTimeModel MakeModel(
    const std::vector<std::tuple<std::int32_t, double, double, double>>& buckets,
    std::int32_t max_graph_rows, double decode_tile_s, double repeated_tile_share,
    double prefill_tile_s, double host_s, double row_s) {
  StepTimeModel model;
  for (const auto& [tokens, launch, gemm, collective] : buckets) {
    model.buckets.push_back({tokens, launch, gemm, collective});
  }
  model.max_graph_rows = max_graph_rows;
  model.decode_tile_s = decode_tile_s;
  model.repeated_tile_share = repeated_tile_share;
  model.prefill_tile_s = prefill_tile_s;
  model.host_s = host_s;
  model.row_s = row_s;
  model.Validate();
  return model;
}

// As MakeModel takes them.
std::vector<std::tuple<std::int32_t, double, double, double>> Buckets(const StepTimeModel& model) {
  std::vector<std::tuple<std::int32_t, double, double, double>> buckets;
  for (const auto& b : model.buckets) {
    buckets.emplace_back(b.num_tokens, b.launch_s, b.gemm_s, b.collective_s);
  }
  return buckets;
}

}  // namespace

void BindStepTime(py::module_& m) {
  py::class_<StepFeatures>(m, "StepFeatures", "What a step does, as far as its time depends on it.")
      .def(py::init([](std::int32_t rows, std::int32_t decode_rows, std::int32_t tokens,
                       double decode_tiles, double prefill_tiles, double repeated_tiles) {
             return StepFeatures{rows,         decode_rows,   tokens,
                                 decode_tiles, prefill_tiles, repeated_tiles};
           }),
           "num_rows"_a, "num_decode_rows"_a, "num_tokens"_a, "num_decode_tiles"_a,
           "num_prefill_tiles"_a, "num_repeated_tiles"_a = 0.0)
      .def_readonly("num_rows", &StepFeatures::num_rows)
      .def_readonly("num_decode_rows", &StepFeatures::num_decode_rows)
      .def_readonly("num_tokens", &StepFeatures::num_tokens)
      .def_readonly("num_decode_tiles", &StepFeatures::num_decode_tiles,
                    "tiles of TILE_LEN tokens of context by one query")
      .def_readonly("num_prefill_tiles", &StepFeatures::num_prefill_tiles,
                    "tiles of TILE_LEN tokens of context by TILE_LEN queries")
      .def_readonly("num_repeated_tiles", &StepFeatures::num_repeated_tiles,
                    "of num_decode_tiles, those that another row reads as well")
      .attr("TILE_LEN") = StepFeatures::kTileLen;
  m.def("step_features", &Features, "plan"_a, "Of a plan that a Scheduler wrote, int32 words.");
  py::class_<StepTimeModel>(m, "StepTimeModel",
                            "Seconds of a step: t0(bucket) + gemm(bucket) + attention(sum of "
                            "tiles) + collectives(bucket) + host. Raises ConfigError.")
      .def(py::init(&MakeModel), py::kw_only(), "buckets"_a, "max_graph_rows"_a = 0,
           "decode_tile_s"_a = 0.0, "repeated_tile_share"_a = 1.0, "prefill_tile_s"_a = 0.0,
           "host_s"_a = 0.0, "row_s"_a = 0.0)
      .def_property_readonly("buckets", &Buckets, "(num_tokens, launch_s, gemm_s, collective_s)")
      .def_readonly("max_graph_rows", &StepTimeModel::max_graph_rows)
      .def_readonly("decode_tile_s", &StepTimeModel::decode_tile_s)
      .def_readonly("prefill_tile_s", &StepTimeModel::prefill_tile_s)
      .def_readonly("host_s", &StepTimeModel::host_s)
      .def(
          "seconds",
          [](const StepTimeModel& self, const StepFeatures& f) { return self.Of(f).total(); },
          "features"_a)
      .def_property_readonly("recompute_token_s", &StepTimeModel::RecomputeTokenSeconds,
                             "of SchedulerConfig, on this device")
      .def_property_readonly("recompute_context_s", &StepTimeModel::RecomputeContextSeconds,
                             "of SchedulerConfig, on this device");
}

}  // namespace runtime::bindings
