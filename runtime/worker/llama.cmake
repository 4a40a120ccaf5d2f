# What Signalbox changes in the build of llama.cpp. `.cargo/config.toml` names this file to CMake, which reads it once the
# project is declared.

# The bindings enable the library `common` without a way to say no. It holds chat parsers, downloads and an HTTP client,
# takes half of the build, and nothing here calls it.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)

# The instructions of the processor that builds: without them a prompt takes several times as long. A binary for other
# machines is built with SIGNALBOX_PORTABLE=1 and does without.
if(NOT DEFINED ENV{SIGNALBOX_PORTABLE})
    set(GGML_NATIVE ON CACHE BOOL "" FORCE)
endif()
