// The C interface: check the arguments once, call the core, turn exceptions into codes.
#define FASTGC_BUILDING
#include "fastgc.h"

int fastgc_abi_version() { return FASTGC_ABI_VERSION; }

const char* fastgc_version() { return FASTGC_VERSION; }
