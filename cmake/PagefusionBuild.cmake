# SPDX-License-Identifier: LGPL-2.1-or-later
# Warnings, hardening and the functions by which the subdirectories declare tests and fuzz targets.

option(PF_WERROR "Warnings are errors" OFF)
option(PF_HARDEN "FORTIFY, stack protector, PIE and full RELRO" OFF)
option(PF_FUZZ "Build the fuzz targets with libFuzzer (clang)" OFF)
option(PF_FUZZ_COVERAGE "Instrument for llvm-cov, for the fuzz targets (clang)" OFF)
option(PF_COVERAGE "Instrument for gcov" OFF)
set(PF_SANITIZE "" CACHE STRING "Value for -fsanitize=")

set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# Asserts stay in every build: a service whose own invariants are broken is to end, not to go on. (The shim has none.)
foreach(flags CMAKE_C_FLAGS_RELEASE CMAKE_C_FLAGS_RELWITHDEBINFO CMAKE_C_FLAGS_MINSIZEREL)
	string(REPLACE "-DNDEBUG" "" ${flags} "${${flags}}")
endforeach()

add_compile_options(-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef
	-Wpointer-arith -Wwrite-strings -Wformat=2 -Wno-unused-parameter -Wno-missing-field-initializers
	-fno-strict-aliasing -fno-common)
add_compile_definitions(_GNU_SOURCE _FILE_OFFSET_BITS=64)
include_directories("${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated")

if(PF_WERROR)
	add_compile_options(-Werror)
endif()
if(PF_HARDEN)
	# _FORTIFY_SOURCE wants optimisation; some compilers define a lower one themselves.
	add_compile_options(-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fstack-clash-protection)
	add_link_options(-Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)
	# -pie after -static-pie would undo it.
	if(NOT PF_STATIC_AGENT)
		include(CheckPIESupported)
		check_pie_supported()
	endif()
endif()
if(PF_SANITIZE)
	add_compile_options(-fsanitize=${PF_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
	add_link_options(-fsanitize=${PF_SANITIZE})
endif()
if(PF_FUZZ)
	add_compile_options(-fsanitize=fuzzer-no-link)
endif()
if(PF_FUZZ_COVERAGE)
	add_compile_options(-fprofile-instr-generate -fcoverage-mapping -O1)
	add_link_options(-fprofile-instr-generate)
endif()
if(PF_COVERAGE)
	add_compile_options(--coverage -O0)
	add_link_options(--coverage)
endif()

# pf_link_statically(TARGET PREFIX...) links a program without any shared library. The PREFIXes are those that
# pkg_check_modules() was called with: each library is taken from its archive, with what pkg-config says it needs itself.
function(pf_link_statically target)
	foreach(prefix ${ARGN})
		set_target_properties(PkgConfig::${prefix} PROPERTIES
			INTERFACE_LINK_LIBRARIES "${${prefix}_STATIC_LIBRARIES}"
			INTERFACE_LINK_DIRECTORIES "${${prefix}_STATIC_LIBRARY_DIRS}")
	endforeach()
	target_link_options(${target} PRIVATE -static-pie)
endfunction()

# pf_unit_test(NAME LIBS... ) builds test_NAME from test_NAME.c with cmocka and gives it the label "unit".
function(pf_unit_test name)
	add_executable(test_${name} test_${name}.c)
	target_link_libraries(test_${name} PRIVATE ${ARGN} PkgConfig::CMOCKA)
	add_test(NAME unit/${name} COMMAND test_${name})
	set_tests_properties(unit/${name} PROPERTIES LABELS unit TIMEOUT 120)
endfunction()

# All of them: what the two presets for fuzzing build.
add_custom_target(fuzz_targets)

# pf_fuzz_target(NAME LIBS... PARSES FILE...) builds fuzz_NAME from fuzz_NAME.c. In the fuzz preset it is a libFuzzer
# program; elsewhere standalone.c runs it over corpus/NAME as a plain test. PARSES names the sources, from the root,
# whose lines it is to reach; FILE:FUNCTION,... where only these functions of a file are meant.
function(pf_fuzz_target name)
	cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "PARSES")
	if(NOT arg_PARSES)
		message(FATAL_ERROR "fuzz target ${name}: PARSES is missing")
	endif()
	add_executable(fuzz_${name} fuzz_${name}.c)
	target_link_libraries(fuzz_${name} PRIVATE ${arg_UNPARSED_ARGUMENTS})
	if(PF_FUZZ)
		target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
	else()
		target_sources(fuzz_${name} PRIVATE standalone.c)
		add_test(NAME fuzz/${name} COMMAND fuzz_${name} "${CMAKE_CURRENT_SOURCE_DIR}/corpus/${name}")
		set_tests_properties(fuzz/${name} PROPERTIES LABELS unit TIMEOUT 120)
	endif()
	list(JOIN arg_PARSES "\", \"" files)
	set_property(GLOBAL APPEND PROPERTY PF_FUZZ_TARGETS "\"${name}\": [\"${files}\"]")
	add_dependencies(fuzz_targets fuzz_${name})
endfunction()

# Writes fuzz_targets.json for tests/fuzz/fuzz.py: the targets and what each parses.
function(pf_fuzz_list)
	get_property(targets GLOBAL PROPERTY PF_FUZZ_TARGETS)
	list(JOIN targets ",\n" text)
	file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/fuzz_targets.json" CONTENT "{\n@text@\n}\n" @ONLY)
endfunction()
