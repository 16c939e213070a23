// A request to the API, written for a shell, for Python and for JavaScript.

export function curl(baseUrl, path, body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${baseUrl}${path} \\\n  -H "Authorization: Bearer $TOLLGATE_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '${json}'`;
}

export function python(baseUrl, path, body) {
  const client = `import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=${quoted(baseUrl)}, api_key=os.environ["TOLLGATE_API_KEY"])\n`;
  if (path === "/classifications") {
    return `${client}answer = client.post("/classifications", cast_to=object, body=${pythonValue(body)})\nprint(answer)`;
  }
  const [method, shown] =
    path === "/chat/completions"
      ? ["chat.completions", "answer.choices[0].message.content"]
      : ["completions", "answer.choices[0].text"];
  const parameters = Object.entries(body).map(([name, value]) => `    ${name}=${pythonValue(value)},`);
  return `${client}answer = client.${method}.create(\n${parameters.join("\n")}\n)\nprint(${shown})`;
}

export function javascript(baseUrl, path, body) {
  const client = `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: ${quoted(baseUrl)}, apiKey: process.env.TOLLGATE_API_KEY });\n`;
  const json = JSON.stringify(body, null, 2);
  if (path === "/classifications") {
    return `${client}const answer = await client.post("/classifications", { body: ${json} });\nconsole.log(answer);`;
  }
  const [method, shown] =
    path === "/chat/completions"
      ? ["chat.completions", "answer.choices[0].message.content"]
      : ["completions", "answer.choices[0].text"];
  return `${client}const answer = await client.${method}.create(${json});\nconsole.log(${shown});`;
}

// JSON's texts and numbers are Python's as well.
function pythonValue(value) {
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${quoted(name)}: ${pythonValue(one)}`).join(", ")}}`;
  }
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

function quoted(text) {
  return JSON.stringify(text);
}
