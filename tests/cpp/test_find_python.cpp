#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "embed/find_python.h"
#include "runtime/error.h"

namespace runtime::embed {
namespace {

namespace fs = std::filesystem;

// An environment of the process without any Python, and a folder to put some in.
class FindPythonTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"RUNTIME_PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX"}) unsetenv(name);
    setenv("PATH", (folder_ / "nowhere").c_str(), 1);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A program that prints `text`, as interpreters do when asked.
  std::string Program(const fs::path& name, const std::string& text = "") {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << "#!/bin/sh\necho '" << text << "'\n";
    chmod(path.c_str(), 0755);
    return path;
  }

  std::string Refusal(const std::string& chosen = "") {
    try {
      return "found " + FindPython(chosen);
    } catch (const PythonNotFound& e) {
      return std::string(e.what()) + "; " + e.hint();
    }
  }

  const fs::path folder_ =
      fs::path(testing::TempDir()) / ("find_python." + std::to_string(getpid()));
};

TEST_F(FindPythonTest, SaysWhatWasSearched) {
  setenv("VIRTUAL_ENV", "/no/such/environment", 1);
  const std::string refusal = Refusal();
  for (const std::string part : {"$RUNTIME_PYTHON: not set", "/no/such/environment/bin/python3",
                                 "nowhere/python3", "$CONDA_PREFIX: not set"}) {
    EXPECT_NE(refusal.find(part), std::string::npos) << part << " in " << refusal;
  }
}

TEST_F(FindPythonTest, WhatIsChosenMustBeThere) {
  Program("bin/python3");
  setenv("PATH", (folder_ / "bin").c_str(), 1);
  EXPECT_NE(Refusal("/no/python").find("EngineConfig::python=/no/python"), std::string::npos);
  setenv("RUNTIME_PYTHON", folder_.c_str(), 1);  // a folder
  EXPECT_NE(Refusal().find("RUNTIME_PYTHON=" + folder_.string()), std::string::npos);
}

TEST_F(FindPythonTest, TakesTheFirstInItsOrder) {
  const std::string on_path = Program("path/python3");
  setenv("PATH", (folder_ / "nowhere").string().append(":").append(folder_ / "path").c_str(), 1);
  EXPECT_EQ(FindPython(""), on_path);
  const std::string in_venv = Program("venv/bin/python3");
  setenv("VIRTUAL_ENV", (folder_ / "venv").c_str(), 1);
  EXPECT_EQ(FindPython(""), in_venv);
  const std::string named = Program("named");
  setenv("RUNTIME_PYTHON", named.c_str(), 1);
  EXPECT_EQ(FindPython(""), named);
  const std::string chosen = Program("chosen");
  EXPECT_EQ(FindPython(chosen), chosen);
}

TEST_F(FindPythonTest, AProgramLooksBesideItself) {
  const std::string in_venv = Program("venv/bin/python3"), beside = Program("bin/python3");
  setenv("VIRTUAL_ENV", (folder_ / "venv").c_str(), 1);
  EXPECT_EQ(FindPython("", beside), beside);
  EXPECT_EQ(FindPython("", folder_ / "elsewhere"), in_venv);
  setenv("RUNTIME_PYTHON", in_venv.c_str(), 1);
  EXPECT_EQ(FindPython("", beside), in_venv);
}

TEST_F(FindPythonTest, AnInterpreterNamesItsLibraries) {
  const std::string python = Program("python3", "/a/libpython3.so\n\nlibpython3.so");
  EXPECT_EQ(LibpythonCandidates(python),
            (std::vector<std::string>{"/a/libpython3.so", "libpython3.so"}));
}

TEST_F(FindPythonTest, AnInterpreterNamesItsVersion) {
  EXPECT_EQ(VersionOf(Program("python3", "3.11")), "3.11");
}

TEST_F(FindPythonTest, AProgramThatDoesNotAnswerIsNoPython) {
  EXPECT_THROW(VersionOf("/no/such/program"), PythonNotFound);
  EXPECT_THROW(LibpythonCandidates(Program("python3")), PythonNotFound);
  EXPECT_THROW(LibpythonCandidates("/no/such/program"), PythonNotFound);
}

}  // namespace
}  // namespace runtime::embed
