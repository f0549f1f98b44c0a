#version 330 core
// Matte, two-sided, lit by one light that moves with the camera. Colours are mixed in linear light and written as sRGB.
struct Material {
    vec3 emissive_factor;
#ifdef HAS_BASE_COLOR_TEX
    sampler2D base_color_texture;
#endif
#ifdef HAS_EMISSIVE_TEX
    sampler2D emissive_texture;
#endif
};

uniform Material material;
uniform vec3 ambient_light;

in vec3 view_position;
in vec3 view_normal;
in vec2 uv;
in vec4 linear_color;

out vec4 frag_color;

// Towards the light in the camera's frame (x right, y up, z back): 30 degrees above the line of sight, a little right.
const vec3 to_light = normalize(vec3(0.2, 0.55, 1.0));

vec3 srgb_to_linear(vec3 srgb)
{
    return mix(srgb / 12.92, pow((srgb + 0.055) / 1.055, vec3(2.4)), step(vec3(0.04045), srgb));
}

vec3 linear_to_srgb(vec3 linear)
{
    return mix(12.92 * linear, 1.055 * pow(linear, vec3(1.0 / 2.4)) - 0.055, step(vec3(0.0031308), linear));
}

void main()
{
    vec4 base_color = linear_color;
#ifdef HAS_BASE_COLOR_TEX
    vec4 texel = texture(material.base_color_texture, uv);
    base_color *= vec4(srgb_to_linear(texel.rgb), texel.a);
#endif

    // The visible side of a surface is lit whatever its winding: the normal is turned to the side that is seen. A
    // missing (zero) normal is replaced by that of the triangle.
    vec3 flat_normal = normalize(cross(dFdx(view_position), dFdy(view_position)));
    flat_normal *= dot(flat_normal, view_position) > 0.0 ? -1.0 : 1.0;
    vec3 normal = dot(view_normal, view_normal) > 1e-12 ? normalize(view_normal) : flat_normal;
    normal *= dot(normal, flat_normal) < 0.0 ? -1.0 : 1.0;

    vec3 light = ambient_light + (1.0 - ambient_light) * max(dot(normal, to_light), 0.0);
    vec3 emissive = material.emissive_factor;
#ifdef HAS_EMISSIVE_TEX
    emissive *= srgb_to_linear(texture(material.emissive_texture, uv).rgb);
#endif
    vec3 color = clamp(base_color.rgb * light + emissive, 0.0, 1.0);
    // Alpha becomes a number of covered samples; in the middle of a quarter every driver counts the same.
    float quarters = floor(4.0 * base_color.a + 0.5);
    float coverage = quarters < 4.0 ? max(quarters - 0.5, 0.0) / 4.0 : 1.0;
    frag_color = vec4(linear_to_srgb(color), coverage);
}
