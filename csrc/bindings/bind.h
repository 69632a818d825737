#pragma once

#include <pybind11/pybind11.h>

namespace runtime::bindings {

void BindCommunicator(pybind11::module_& m);
void BindEmbedding(pybind11::module_& m);
void BindErrors();
void BindKvCache(pybind11::module_& m);
void BindLauncher(pybind11::module_& m);
void BindPeerBuffers(pybind11::module_& m);
void BindRequestParams(pybind11::module_& m);
void BindRoofline(pybind11::module_& m);
void BindScheduler(pybind11::module_& m);
void BindSimulation(pybind11::module_& m);
void BindStepPlan(pybind11::module_& m);
void BindStepTime(pybind11::module_& m);

}  // namespace runtime::bindings
