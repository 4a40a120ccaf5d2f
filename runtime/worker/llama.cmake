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

# The library `llama` lays out each model's graph in a file of its own, 158 of them; `ggml` does the arithmetic. Files that
# are compiled together read their headers once, and less optimisation here costs a request nothing that can be measured.
if(PROJECT_IS_TOP_LEVEL)
    cmake_language(DEFER CALL set_target_properties llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
    cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
endif()
