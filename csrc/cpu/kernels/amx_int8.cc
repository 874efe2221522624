// AMX tiles with int8: the int8 products of the ISA `amx`. Few rows are multiplied by VNNI, which every CPU with AMX has.
#define LSTMFAST_TILE_PRODUCT _tile_dpbusd
#include "cpu/kernels/amx_tiles-inl.h"
#include "cpu/kernels/avx512_vnni-inl.h"

namespace lstmfast {
namespace {

using Int8TileRegisters = AmxTiles;

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/int8_tiles-inl.h"

extern "C" const lstmfast::DotKernels* lstmfast_kernels_amx_int8() noexcept { return &lstmfast::kInt8TileKernels; }
