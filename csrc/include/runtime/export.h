#pragma once

// What libruntime.so exports; everything else in it is hidden.
#define RUNTIME_API __attribute__((visibility("default")))
