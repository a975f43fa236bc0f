// Vectors: constructors, swizzles, operators, layout.
#include <metal_stdlib>
using namespace metal;

kernel void constructors(device float* out [[buffer(0)]]) {
  float2 ab = float2(1, 2);
  float3 abc = float3(ab, 3);
  float3 xbc = float3(7.0, ab);
  float4 splat = float4(5);
  float4 pairs = float4(ab, ab.yx);
  float4 mixed = float4(1, abc.yz, 9u);
  float4 from_ints = float4(int4(-1, 2, -3, 4));
  int2 truncated = int2(float2(1.9, -1.9));
  uint2 list = {3, 4};
  int k = 0;
  for (int i = 0; i < 3; i++) out[k++] = abc[i];
  for (int i = 0; i < 3; i++) out[k++] = xbc[i];
  for (int i = 0; i < 4; i++) out[k++] = splat[i];
  for (int i = 0; i < 4; i++) out[k++] = pairs[i];
  for (int i = 0; i < 4; i++) out[k++] = mixed[i];
  for (int i = 0; i < 4; i++) out[k++] = from_ints[i];
  out[k++] = truncated.x;
  out[k++] = truncated.y;
  out[k++] = list.x + list.y;
}

kernel void swizzles(device float* out [[buffer(0)]]) {
  float4 v = float4(1, 2, 3, 4);
  float4 w = v.wzyx;
  float2 lo = v.xy, hi = v.zw;
  v.xz = float2(10, 30);
  v.yw += float2(0.5, 0.25);
  float3 doubled = 2 * v.rgb;
  half4 h = half4(w);
  h.xyz = h.zyx;
  out[0] = w.x; out[1] = w.y; out[2] = w.z; out[3] = w.w;
  out[4] = lo.x; out[5] = lo.y; out[6] = hi.x; out[7] = hi.y;
  out[8] = v.x; out[9] = v.y; out[10] = v.z; out[11] = v.w;
  out[12] = doubled.x; out[13] = doubled.y; out[14] = doubled.z;
  out[15] = h.x; out[16] = h.y; out[17] = h.z; out[18] = h.w;
  out[19] = dot(w.xy, hi);
  out[20] = (lo + hi).y;
}

kernel void operators(device int* out [[buffer(0)]]) {
  int4 a = int4(7, -7, 9, 12), b = int4(2, 2, 4, 5);
  int4 q = a / b, r = a % b, s = a << 1, n = -a, x = a ^ b;
  bool4 less = a < b;
  for (int i = 0; i < 4; i++) {
    out[i] = q[i]; out[4 + i] = r[i]; out[8 + i] = s[i]; out[12 + i] = n[i]; out[16 + i] = x[i]; out[20 + i] = less[i];
  }
  out[24] = any(less);
  out[25] = all(less);
  int4 chosen = select(a, b, less);
  out[26] = chosen.y;
  a += b;
  a *= 2;
  out[27] = a.w;
  out[28] = clamp(a, int4(0), int4(20)).z;
  out[29] = max(a, b).y;
}

struct Mixed {
  uchar tag;
  float3 v;
  half2 h;
};
kernel void layout(device uint* out [[buffer(0)]], device const uint4* words [[buffer(1)]],
                   device const packed_float3* packed [[buffer(2)]]) {
  out[0] = sizeof(float3); out[1] = sizeof(packed_float3); out[2] = sizeof(half3); out[3] = sizeof(uchar4);
  out[4] = sizeof(Mixed); out[5] = alignof(float4); out[6] = sizeof(bool2); out[7] = sizeof(bfloat4);
  out[8] = words[1].z;
  float3 second = packed[1];
  out[9] = uint(second.y);
  device const float2* halves = (device const float2*)packed;
  out[10] = uint(halves[1].x);
  float4 as = as_type<float4>(words[0]);
  out[11] = uint(as.x);
  out[12] = as_type<uint>(uchar4(1, 2, 3, 4));
  out[13] = as_type<uint>(half2(1, -2));
}
