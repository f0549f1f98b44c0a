#version 330 core
// pyrender fills these: vertex data by location, M (identity here), V and P.
layout(location = 0) in vec3 position;
layout(location = NORMAL_LOC) in vec3 normal;
layout(location = TEXCOORD_0_LOC) in vec2 texcoord_0;
layout(location = COLOR_0_LOC) in vec4 color_0;
layout(location = INST_M_LOC) in mat4 inst_m;

uniform mat4 M;
uniform mat4 V;
uniform mat4 P;

out vec3 view_position;
out vec3 view_normal;
out vec2 uv;
out vec4 linear_color;

void main()
{
    mat4 model_view = V * M * inst_m;
    vec4 at = model_view * vec4(position, 1.0);
    gl_Position = P * at;
    view_position = at.xyz;
    view_normal = mat3(model_view) * normal;
    uv = texcoord_0;
    linear_color = color_0;
}
