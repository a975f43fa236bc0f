// Scalar types: rounding of half and bfloat, integer widths, conversions, literals.
#include <metal_stdlib>
using namespace metal;

// in: pairs of floats. out: bits of the sum, product and quotient in half and bfloat.
kernel void rounding(device const float* in [[buffer(0)]], device ushort* out [[buffer(1)]],
                     uint i [[thread_position_in_grid]]) {
  half a = half(in[2 * i]), b = half(in[2 * i + 1]);
  bfloat c = bfloat(in[2 * i]), d = bfloat(in[2 * i + 1]);
  out[8 * i + 0] = as_type<ushort>(half(a + b));
  out[8 * i + 1] = as_type<ushort>(half(a * b));
  out[8 * i + 2] = as_type<ushort>(half(a / b));
  out[8 * i + 3] = as_type<ushort>(half(a * b + a));
  out[8 * i + 4] = as_type<ushort>(bfloat(c + d));
  out[8 * i + 5] = as_type<ushort>(bfloat(c * d));
  out[8 * i + 6] = as_type<ushort>(bfloat(c / d));
  out[8 * i + 7] = as_type<ushort>(bfloat(c * d + c));
}

kernel void mixed_types(device uint* out [[buffer(0)]]) {
  out[0] = sizeof(half(1) + half(1));
  out[1] = sizeof(half(1) + 1);
  out[2] = sizeof(half(1) + 1.0f);
  out[3] = sizeof(bfloat(1) + bfloat(1));
  out[4] = sizeof(bfloat(1) * 2);
  out[5] = sizeof(bfloat(1) * 1.0);
  out[6] = sizeof(bfloat(1) * half(1));
  out[7] = sizeof(1.0);
  out[8] = sizeof(1.0h);
  out[9] = as_type<uint>(1.0 / 3.0);
  out[10] = is_same_v<decltype(half(1) * half(1)), half>;
  out[11] = is_same_v<decltype(bfloat(1) - bfloat(1)), bfloat>;
  bfloat acc = bfloat(256.0f);
  acc += bfloat(1.0f);
  out[12] = uint(float(acc));
  half h = 2048;
  h += half(1);
  out[13] = uint(h);
  out[14] = uint(float(numeric_limits<half>::max()));
  out[15] = as_type<ushort>(numeric_limits<bfloat>::max());
}

kernel void integers(device const uint* in [[buffer(0)]], device uint* out [[buffer(1)]]) {
  uint w = in[0];
  uchar narrow = uchar(w);
  char negative = char(w >> 8);
  ushort wrapped = ushort(ushort(65535) + ushort(2));
  long big = long(int(w)) * 1000003l;
  ulong unsigned_big = ulong(w) << 20;
  out[0] = narrow;
  out[1] = uint(int(negative));
  out[2] = wrapped;
  out[3] = uint(big);
  out[4] = uint(big >> 32);
  out[5] = uint(unsigned_big >> 32);
  out[6] = uint(-7 / 2);
  out[7] = uint(-7 % 3);
  out[8] = uint(-7 >> 1);
  out[9] = (w >> 28) & 0xf;
  out[10] = popcount(w);
  out[11] = clz(1u << 7);
  out[12] = ctz(1u << 7);
  out[13] = extract_bits(w, 4, 12);
  out[14] = uint(extract_bits(int(w), 8, 8));
  out[15] = insert_bits(0u, 5u, 3, 3);
  out[16] = mulhi(w, w);
  out[17] = rotate(w, 8u);
  out[18] = reverse_bits(1u);
  out[19] = uint(abs(-5)) + uint(min(-3, 2) == -3) + max(3u, 4u);
  out[20] = uint(char(-1)) >> 31;
  out[21] = uint(uchar(200) + uchar(100));
}

kernel void conversions(device const float* in [[buffer(0)]], device int* out [[buffer(1)]]) {
  out[0] = int(in[0]);
  out[1] = int(in[1]);
  out[2] = int(uchar(in[0]));
  out[3] = as_type<int>(in[0]);
  out[4] = int(as_type<float>(out[3]) == in[0]);
  out[5] = as_type<int>(float(half(in[2])));
  out[6] = as_type<int>(float(bfloat(in[2])));
  out[7] = as_type<short>(half(in[3]));
  out[8] = isnan(half(in[4])) + 2 * isnan(bfloat(in[4])) + 4 * isinf(in[5]);
  out[9] = int(bool(in[0])) + int(!in[6]);
}
